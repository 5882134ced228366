//! Error of a lossy precision: generates the same images in it and in full precision, one engine after the other, and
//! compares them.

use serde::Serialize;

use super::{params_of, spec_of};
use crate::app::generate::for_its_operator;
use crate::app::kernel_trials::with_faults;
use crate::app::models::files_of;
use crate::catalog::card_of;
use crate::config::Config;
use crate::domain::device::EngineSettings;
use crate::domain::image::RgbImage;
use crate::domain::image_size::ImageSize;
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::step_cache::StepCache;
use crate::engine::{FluxEngine, Trace};

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct FidelityRequest {
    /// The model.
    pub model: ModelSource,
    /// Device and engine settings. Its precision, or fp8 if that is full, is compared with full precision.
    pub engine: EngineSettings,
    /// Prompts, each generated with each seed.
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

/// Distances between the images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FidelityReport {
    /// This program's version.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// The device.
    pub device: String,
    /// The precision compared with full precision.
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

/// Distance of one image from the same image in full precision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distance {
    /// The prompt.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Relative error of the first step's velocity, from the same noise: ‖lossy - full‖ / ‖full‖.
    pub velocity_first: Option<f64>,
    /// The same for the latents after the last step, with the error of all steps.
    pub latents_final: Option<f64>,
    /// Peak signal-to-noise ratio of the pixels, in dB. `None` if they are equal, or an image is missing.
    pub psnr_db: Option<f64>,
}

/// Generates each image twice. `on_image` is called after each one with its number, the total and the precision.
///
/// # Errors
/// When the model cannot be loaded in either precision, or the request is invalid.
pub fn fidelity(
    config: &Config,
    request: &FidelityRequest,
    on_image: &mut dyn FnMut(usize, usize, Precision) -> anyhow::Result<()>,
) -> anyhow::Result<FidelityReport> {
    let specs = specs_of(request, None)?;
    let Some(first) = specs.first() else { anyhow::bail!("no prompt or no seed: there is nothing to generate") };
    let precision = request.engine.precision.if_lossy().unwrap_or(Precision::Fp8);
    let files = files_of(config, &request.model)?;
    let engine = with_faults(request.engine);
    let mut device = String::new();
    // One engine after the other: two may not fit.
    let mut traces_in = |precision| -> anyhow::Result<Vec<Trace>> {
        let mut engine = FluxEngine::load(&files, EngineSettings { precision, ..engine })?;
        device = engine.device_name();
        let mut traces = Vec::with_capacity(specs.len());
        for spec in &specs {
            traces.push(engine.trace(spec)?);
            on_image(traces.len(), specs.len(), precision)?;
        }
        Ok(traces)
    };
    let (full, lossy) = (traces_in(Precision::Full)?, traces_in(precision)?);
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

/// Each prompt with each seed, with this cache.
pub(super) fn specs_of(request: &FidelityRequest, step_cache: Option<StepCache>) -> anyhow::Result<Vec<GenerateSpec>> {
    let card = for_its_operator(card_of(&request.model));
    let mut specs = Vec::with_capacity(request.prompts.len() * request.seeds.len());
    for prompt in &request.prompts {
        for &seed in &request.seeds {
            specs.push(spec_of(&card, GenerateParams { step_cache, ..params(request, prompt, seed) })?);
        }
    }
    Ok(specs)
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

/// ‖other - truth‖ / ‖truth‖; `None` if that is not finite.
pub(super) fn relative(truth: &[f32], other: &[f32]) -> Option<f64> {
    let square = |x: f64| x * x;
    let away: f64 = truth.iter().zip(other).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = truth.iter().map(|&a| square(f64::from(a))).sum();
    let ratio = (away / norm).sqrt();
    (truth.len() == other.len() && ratio.is_finite()).then_some(ratio)
}

/// Peak signal-to-noise ratio, in dB. `None` if they are equal.
pub(super) fn psnr_db(truth: &RgbImage, other: &RgbImage) -> Option<f64> {
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
    fn distances_match_their_definitions() {
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
            // fp8 is some percent off: an error of zero would mean that nothing was rounded.
            let [velocity, latents] = [image.velocity_first, image.latents_final].map(|x| x.expect("a number"));
            assert!((0.001..0.2).contains(&velocity) && (0.001..0.5).contains(&latents), "{image:?}");
            assert!(image.psnr_db.expect("they differ") > 15.0, "{image:?}");
        }
        let nothing = FidelityRequest { seeds: Vec::new(), ..request };
        assert!(fidelity(&Config::default(), &nothing, &mut |_, _, _| Ok(())).is_err());
    }
}
