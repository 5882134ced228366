//! Error of the first-block cache, and what it saves: generates the same images without it and at several thresholds, with one
//! engine, and compares them.

use serde::Serialize;

use super::fidelity::{FidelityRequest, psnr_db, relative, specs_of};
use crate::app::kernel_trials::with_faults;
use crate::app::models::files_of;
use crate::config::Config;
use crate::domain::engine::{EngineError, StepEngine as _};
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateSpec;
use crate::domain::step_cache::StepCache;
use crate::engine::{FluxEngine, Trace};

/// Images with a cache beside those without.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CachingReport {
    /// This program's version.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// The device.
    pub device: String,
    /// The precision of all images.
    pub precision: Precision,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Value of the guidance embedding.
    pub guidance: f64,
    /// Each image at each threshold, in order.
    #[serde(rename = "pictures")]
    pub images: Vec<CachedImage>,
}

/// An image with a cache, and the same without.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CachedImage {
    /// The prompt.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// The cache's threshold.
    pub threshold: f64,
    /// Steps in which only the first block ran.
    pub steps_skipped: u32,
    /// All steps.
    pub steps: u32,
    /// The time of all steps.
    pub seconds: f64,
    /// The same without the cache.
    pub seconds_uncached: f64,
    /// Relative error of the latents after the last step: ‖cached - uncached‖ / ‖uncached‖.
    pub latents_final: Option<f64>,
    /// Peak signal-to-noise ratio of the pixels, in dB. `None` if they are equal, or an image is missing.
    pub psnr_db: Option<f64>,
}

/// Generates each image without a cache, and at each threshold. The engine's precision stays. `on_image` is called after each
/// one with its number, the total and the threshold.
///
/// # Errors
/// When the model cannot be loaded, or the request or a threshold is invalid.
pub fn caching(
    config: &Config,
    request: &FidelityRequest,
    thresholds: &[f64],
    on_image: &mut dyn FnMut(usize, usize, Option<f64>) -> anyhow::Result<()>,
) -> anyhow::Result<CachingReport> {
    let uncached = specs_of(request, None)?;
    let cached = thresholds.iter().map(|&threshold| Ok((threshold, specs_of(request, Some(StepCache { threshold }))?)));
    let cached: Vec<(f64, Vec<GenerateSpec>)> = cached.collect::<anyhow::Result<_>>()?;
    let Some(first) = uncached.first() else { anyhow::bail!("no prompt or no seed: there is nothing to generate") };
    let mut engine = FluxEngine::load(&files_of(config, &request.model)?, with_faults(request.engine))?;
    warm_up(&mut engine, first)?;
    let all = uncached.len() * (1 + cached.len());
    let (mut truths, mut images) = (Vec::new(), Vec::new());
    for spec in &uncached {
        truths.push(engine.trace(spec)?);
        on_image(truths.len(), all, None)?;
    }
    for (threshold, specs) in &cached {
        for (spec, truth) in specs.iter().zip(&truths) {
            images.push(compared(spec, *threshold, truth, &engine.trace(spec)?));
            on_image(truths.len() + images.len(), all, Some(*threshold))?;
        }
    }
    Ok(CachingReport {
        version: env!("CARGO_PKG_VERSION"),
        model: request.model.id.to_string(),
        device: engine.device_name(),
        precision: request.engine.precision,
        width: first.width(),
        height: first.height(),
        steps: first.steps(),
        guidance: first.guidance(),
        images,
    })
}

/// A step that is not timed: the first one loads what others need.
fn warm_up(engine: &mut FluxEngine, spec: &GenerateSpec) -> Result<(), EngineError> {
    let slot = engine.admit(spec)?;
    let stepped = engine.step(&[slot]);
    engine.release(slot);
    stepped
}

fn compared(spec: &GenerateSpec, threshold: f64, truth: &Trace, trace: &Trace) -> CachedImage {
    let images = truth.image.as_ref().zip(trace.image.as_ref());
    CachedImage {
        prompt: spec.prompt().to_owned(),
        seed: spec.seed(),
        threshold,
        steps_skipped: trace.steps_skipped,
        steps: spec.steps(),
        seconds: trace.steps_seconds,
        seconds_uncached: truth.steps_seconds,
        latents_final: relative(&truth.latents_final, &trace.latents_final),
        psnr_db: images.and_then(|(truth, image)| psnr_db(truth, image)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::device::EngineSettings;

    #[test]
    fn the_demo_model_is_compared_with_itself_at_each_threshold() {
        let request = FidelityRequest {
            model: "fluxserve/flux-shapes".parse().expect("a model"),
            engine: EngineSettings::default(),
            prompts: vec!["a red circle".to_owned()],
            seeds: vec![3, 4],
            size: Some("64x64".parse().expect("a size")),
            steps: Some(8),
            guidance: None,
        };
        let (mut heard, thresholds) = (Vec::new(), [1e-9, 1.0]);
        let mut on_image = |done, all, threshold| {
            heard.push((done, all, threshold));
            Ok(())
        };
        let report = caching(&Config::default(), &request, &thresholds, &mut on_image).expect("compared");
        let (low, high) = (Some(1e-9), Some(1.0));
        assert_eq!(heard, [(1, 6, None), (2, 6, None), (3, 6, low), (4, 6, low), (5, 6, high), (6, 6, high)]);
        let [a, b, c, d] = report.images.as_slice() else { panic!("{report:?}") };
        for (image, seed) in [(a, 3), (b, 4)] {
            let found = (image.seed, image.threshold, image.steps_skipped, image.latents_final, image.psnr_db);
            assert_eq!(found, (seed, 1e-9, 0, Some(0.0), None), "nothing was left out");
        }
        for (image, seed) in [(c, 3), (d, 4)] {
            assert_eq!((image.seed, image.threshold, image.steps), (seed, 1.0, 8));
            assert!((1..8).contains(&image.steps_skipped) && image.latents_final > Some(0.0), "{image:?}");
            assert!(image.seconds > 0.0 && image.seconds_uncached > 0.0, "{image:?}");
        }
        let refused = caching(&Config::default(), &request, &[1.5], &mut |_, _, _| Ok(())).expect_err("too high");
        assert_eq!(refused.to_string(), "cache_threshold: must be above 0 and at most 1, not 1.5");
        let nothing = FidelityRequest { seeds: Vec::new(), ..request };
        assert!(caching(&Config::default(), &nothing, &[0.1], &mut |_, _, _| Ok(())).is_err());
    }
}
