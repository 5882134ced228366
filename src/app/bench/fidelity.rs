//! What a lossy precision costs: the same images drawn in it and in full, one engine after the other, and how far they
//! are apart.

use serde::Serialize;

use super::{params_of, spec_of};
use crate::app::generate::for_its_operator;
use crate::app::models::files_of;
use crate::catalog::card_or_flux_dev;
use crate::config::Config;
use crate::domain::device::EngineSettings;
use crate::domain::engine::RgbImage;
use crate::domain::image_size::ImageSize;
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::{FluxEngine, Trace};

/// What is to be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct FidelityRequest {
    /// The model that draws.
    pub model: ModelSource,
    /// Where to draw, and how. Its precision, or fp8 where that is full, is compared with full.
    pub engine: EngineSettings,
    /// What to draw, each with each seed.
    pub prompts: Vec<String>,
    /// Seeds of the noise.
    pub seeds: Vec<u64>,
    /// The images' size; `None`: the model's.
    pub size: Option<ImageSize>,
    /// Denoising steps; `None`: the model's.
    pub steps: Option<u32>,
    /// Value of the guidance embedding; `None`: the model's.
    pub guidance: Option<f64>,
}

/// How far the images are apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FidelityReport {
    /// This program's version.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// Where it drew.
    pub device: String,
    /// What was compared with full.
    pub precision: Precision,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Value of the guidance embedding.
    pub guidance: f64,
    /// Each image, in order.
    #[serde(rename = "pictures")]
    pub images: Vec<Distance>,
}

/// How far one image is from itself in full.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distance {
    /// What was drawn.
    pub prompt: String,
    /// From which noise.
    pub seed: u64,
    /// Of the first step's velocity, from the same noise: ‖lossy - full‖ / ‖full‖.
    pub velocity_first: Option<f64>,
    /// The same of the latents after the last step: what each step did differently has added up.
    pub latents_final: Option<f64>,
    /// Peak signal to noise of the pixels, in dB. `None` where they are equal, or one of the images is none.
    pub psnr_db: Option<f64>,
}

/// Draws each image twice. `on_image` hears of each one that was drawn, how many there are, and in which precision.
///
/// # Errors
/// When the model cannot be loaded in either precision, or does not draw what is asked for.
pub fn fidelity(
    config: &Config,
    request: &FidelityRequest,
    on_image: &mut dyn FnMut(usize, usize, Precision) -> anyhow::Result<()>,
) -> anyhow::Result<FidelityReport> {
    let card = for_its_operator(card_or_flux_dev(&request.model.id));
    let mut specs = Vec::with_capacity(request.prompts.len() * request.seeds.len());
    for prompt in &request.prompts {
        for &seed in &request.seeds {
            specs.push(spec_of(&card, params(request, prompt, seed))?);
        }
    }
    let Some(first) = specs.first() else { anyhow::bail!("no prompt or no seed: nothing is to be drawn") };
    let precision = request.engine.precision.if_lossy().unwrap_or(Precision::Fp8);
    let files = files_of(config, &request.model)?;
    let mut device = String::new();
    // One engine after the other: two would not fit where one does.
    let mut drawn = |precision| -> anyhow::Result<Vec<Trace>> {
        let mut engine = FluxEngine::load(&files, EngineSettings { precision, ..request.engine })?;
        device = engine.device_name();
        let mut traces = Vec::with_capacity(specs.len());
        for spec in &specs {
            traces.push(engine.trace(spec)?);
            on_image(traces.len(), specs.len(), precision)?;
        }
        Ok(traces)
    };
    let (full, lossy) = (drawn(Precision::Full)?, drawn(precision)?);
    let distances = specs.iter().zip(full.iter().zip(&lossy)).map(|(spec, (full, lossy))| distance(spec, full, lossy));
    Ok(FidelityReport {
        version: env!("CARGO_PKG_VERSION"),
        model: request.model.id.to_string(),
        precision,
        width: first.width(),
        height: first.height(),
        steps: first.steps(),
        guidance: first.guidance(),
        images: distances.collect(),
        device,
    })
}

fn params(request: &FidelityRequest, prompt: &str, seed: u64) -> GenerateParams {
    let size = request.size.map(|size| params_of(size, prompt, 1)).unwrap_or_default();
    let (steps, guidance) = (request.steps, request.guidance);
    GenerateParams { prompt: prompt.to_owned(), seed, steps, guidance, ..size }
}

fn distance(spec: &GenerateSpec, full: &Trace, lossy: &Trace) -> Distance {
    let images = full.image.as_ref().zip(lossy.image.as_ref());
    Distance {
        prompt: spec.prompt().to_owned(),
        seed: spec.seed(),
        velocity_first: relative(&full.velocity_first, &lossy.velocity_first),
        latents_final: relative(&full.latents_final, &lossy.latents_final),
        psnr_db: images.and_then(|(full, lossy)| psnr_db(full, lossy)),
    }
}

/// ‖other - truth‖ / ‖truth‖; `None` where that is no number.
fn relative(truth: &[f32], other: &[f32]) -> Option<f64> {
    let square = |x: f64| x * x;
    let away: f64 = truth.iter().zip(other).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let whole: f64 = truth.iter().map(|&a| square(f64::from(a))).sum();
    let ratio = (away / whole).sqrt();
    (truth.len() == other.len() && ratio.is_finite()).then_some(ratio)
}

fn psnr_db(truth: &RgbImage, other: &RgbImage) -> Option<f64> {
    let pairs = truth.pixels().iter().zip(other.pixels());
    let squares: u64 = pairs.map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    let mean = squares as f64 / truth.pixels().len() as f64;
    (mean > 0.0).then(|| 10.0 * (255.0 * 255.0 / mean).log10())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pixels: [u8; 6]) -> RgbImage {
        RgbImage::new(2, 1, pixels.to_vec()).expect("two pixels")
    }

    #[test]
    fn distances_are_what_their_names_say() {
        assert_eq!(relative(&[3.0, 4.0], &[3.0, 4.0]), Some(0.0));
        assert_eq!(relative(&[3.0, 4.0], &[3.0, 3.0]), Some(0.2));
        assert_eq!(relative(&[3.0, 4.0], &[3.0, f32::NAN]), None);
        assert_eq!(relative(&[0.0], &[0.0]), None);
        assert_eq!(relative(&[1.0, 2.0], &[1.0]), None);
        let (black, grey) = (image([0; 6]), image([51, 0, 0, 0, 0, 0]));
        let psnr = psnr_db(&black, &grey).expect("they differ");
        // A sixth of the squares, each a fifth of the range: 10 log10(6 × 25).
        assert!((psnr - 21.760_9).abs() < 1e-3, "{psnr}");
        assert_eq!(psnr_db(&grey, &grey), None);
    }

    #[test]
    fn the_demo_model_is_compared_with_itself() {
        let request = FidelityRequest {
            model: "fluxserve/flux-shapes".parse().expect("a model"),
            engine: EngineSettings::default(),
            prompts: vec!["a red circle".to_owned(), "a blue square".to_owned()],
            seeds: vec![3],
            size: Some("64x64".parse().expect("a size")),
            steps: Some(4),
            guidance: None,
        };
        let mut heard = Vec::new();
        let mut on_image = |done, all, precision| {
            heard.push((done, all, precision));
            Ok(())
        };
        let report = fidelity(&Config::default(), &request, &mut on_image).expect("compared");
        let (full, lossy) = (Precision::Full, Precision::Fp8);
        assert_eq!(heard, [(1, 2, full), (2, 2, full), (1, 2, lossy), (2, 2, lossy)]);
        assert_eq!((report.precision, report.steps, report.width, report.images.len()), (lossy, 4, 64, 2));
        for image in &report.images {
            // Eight bits are some percent away: nothing would mean that nothing was rounded.
            let [velocity, latents] = [image.velocity_first, image.latents_final].map(|x| x.expect("a number"));
            assert!((0.001..0.2).contains(&velocity) && (0.001..0.5).contains(&latents), "{image:?}");
            assert!(image.psnr_db.expect("they differ") > 15.0, "{image:?}");
        }
        let nothing = FidelityRequest { seeds: Vec::new(), ..request };
        assert!(fidelity(&Config::default(), &nothing, &mut |_, _, _| Ok(())).is_err());
    }
}
