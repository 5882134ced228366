//! `bench`: times the parts of an image with a model on a device, times loading, dumps the intermediate tensors of an
//! image, and measures the error of a lossy precision, or of a cache between steps.

mod caching;
mod fidelity;
mod kernels;
mod loading;
mod timing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::generate::{for_its_operator, refuse_without_folder};
use super::kernel_trials::with_faults;
use super::models::files_of;
use crate::catalog::card_of;
use crate::config::Config;
use crate::domain::device::EngineSettings;
use crate::domain::engine::{EngineError, LoadObserver, Slot, StepEngine};
use crate::domain::image_size::ImageSize;
use crate::domain::model::ModelCard;
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec};
use crate::engine::{FluxEngine, KernelChoices};
pub use caching::{CachedImage, CachingReport, caching};
pub use fidelity::{Distance, FidelityReport, FidelityRequest, fidelity};
pub use kernels::kernels;
pub use loading::{LoadPart, LoadReport, LoadRequest, Moved, load};
use timing::{Bench, Timed, Todo};
pub use timing::{Outcome, Timing};

/// Default sizes to time, as far as the model generates them.
const SIZES: [u32; 4] = [512, 768, 1024, 2048];

/// A complete image is timed at the largest size up to this many pixels.
const COMPLETE_IMAGE_PIXELS: u64 = 1024 * 1024;

/// What to time.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeRequest {
    /// The model.
    pub model: ModelSource,
    /// Device and engine settings.
    pub engine: EngineSettings,
    /// Sizes of images; none: the default ones that the model generates.
    pub sizes: Vec<ImageSize>,
    /// Batch sizes.
    pub counts: Vec<usize>,
    /// Whether images of all sizes up to a megapixel are also timed in one batched step.
    pub mixed: bool,
    /// Steps of complete images.
    pub steps: Vec<u32>,
    /// How often each part is timed, after one untimed run.
    pub repeats: usize,
    /// Nothing is started that would not end within this time from the start.
    pub budget: Option<Duration>,
}

/// Timings of everything.
#[derive(Debug, Clone, Serialize)]
pub struct TimeReport {
    /// This program's version.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// The device.
    pub device: String,
    /// The precision.
    pub precision: Precision,
    /// The kernels in use, and why.
    pub kernels: KernelChoices,
    /// T5 tokens of each prompt.
    pub text_tokens: usize,
    /// Maximum tokens of one step.
    pub step_tokens_max: usize,
    /// Time to load all weights onto the device.
    pub load_seconds: f64,
    /// The timings, in order.
    pub timings: Vec<Timing>,
    /// Why the rest was not timed, if the device answers no more.
    pub stopped: Option<String>,
}

/// Times the parts of images. `on_load` observes loading; `on_timing` is called after each part, with all timings so
/// far.
///
/// # Errors
/// When the model cannot be loaded, or does not generate one of the sizes.
pub fn time(
    config: &Config,
    request: &TimeRequest,
    on_load: Arc<dyn LoadObserver>,
    on_timing: &mut dyn FnMut(&TimeReport) -> anyhow::Result<()>,
) -> anyhow::Result<TimeReport> {
    let started = Instant::now();
    let card = for_its_operator(card_of(&request.model));
    let sizes = sizes_of(request, &card)?;
    let mut engine =
        FluxEngine::load_watched(&files_of(config, &request.model)?, with_faults(request.engine), on_load)?;
    engine.wait()?;
    let mut report = TimeReport {
        version: env!("CARGO_PKG_VERSION"),
        model: request.model.id.to_string(),
        device: engine.device_name(),
        precision: request.engine.precision,
        kernels: engine.kernels(),
        text_tokens: card.sequence_length,
        step_tokens_max: engine.limits().step_tokens_max,
        load_seconds: started.elapsed().as_secs_f64(),
        timings: Vec::new(),
        stopped: None,
    };
    on_timing(&report)?;
    let deadline = request.budget.map(|budget| started + budget);
    let mut bench = Bench::new(&mut engine, card, request.repeats, deadline);
    for todo in todos(request, &sizes) {
        let timing = bench.run(&todo);
        let name = timing.name();
        report.timings.push(timing);
        report.stopped = bench.lost().map(|reason| format!("the device answers no more after `{name}`: {reason}"));
        on_timing(&report)?;
        if report.stopped.is_some() {
            break;
        }
    }
    Ok(report)
}

/// What to time, in order.
fn todos(request: &TimeRequest, sizes: &[ImageSize]) -> Vec<Todo> {
    let mut todos = vec![Todo::Text];
    todos.extend(sizes.iter().map(|&size| Todo::Step(vec![size])));
    todos.extend(sizes.iter().flat_map(|&size| [Todo::Decoder(size), Todo::Finish(size)]));
    let up_to_a_megapixel = || sizes.iter().copied().filter(|size| size.pixels() <= COMPLETE_IMAGE_PIXELS);
    if let Some(size) = up_to_a_megapixel().max_by_key(|size| size.pixels()) {
        todos.push(Todo::Admit(size));
        todos.extend(request.steps.iter().map(|&steps| Todo::Image(size, steps)));
    }
    if request.mixed && up_to_a_megapixel().count() > 1 {
        todos.push(Todo::Step(up_to_a_megapixel().collect()));
    }
    todos.extend(several(sizes, &request.counts).into_iter().map(Todo::Step));
    todos
}

/// Batches of images of one size, the smaller ones first.
fn several(sizes: &[ImageSize], counts: &[usize]) -> Vec<Vec<ImageSize>> {
    let counts = || counts.iter().filter(|&&count| count > 1);
    let mut sets: Vec<Vec<ImageSize>> =
        sizes.iter().flat_map(|&size| counts().map(move |&count| vec![size; count])).collect();
    sets.sort_by_key(|set| set.iter().map(|size| size.pixels()).sum::<u64>());
    sets
}

fn sizes_of(request: &TimeRequest, card: &ModelCard) -> anyhow::Result<Vec<ImageSize>> {
    if request.sizes.is_empty() {
        let squares = SIZES.map(|side| ImageSize { width: side, height: side });
        let supported: Vec<ImageSize> =
            squares.into_iter().filter(|&size| spec_of(card, params_of(size, "", 1)).is_ok()).collect();
        let default = ImageSize { width: card.defaults.width, height: card.defaults.height };
        return Ok(if supported.is_empty() { vec![default] } else { supported });
    }
    for &size in &request.sizes {
        spec_of(card, params_of(size, "", 1)).with_context(|| format!("--sizes {size}"))?;
    }
    Ok(request.sizes.clone())
}

fn params_of(size: ImageSize, prompt: &str, steps: u32) -> GenerateParams {
    GenerateParams {
        prompt: prompt.to_owned(),
        width: Some(size.width),
        height: Some(size.height),
        steps: Some(steps),
        ..GenerateParams::default()
    }
}

fn spec_of(card: &ModelCard, params: GenerateParams) -> anyhow::Result<GenerateSpec> {
    GenerateSpec::new(params, card).map_err(|errors| {
        let lines: Vec<String> =
            errors.into_iter().map(|FieldError { field, reason }| format!("{field}: {reason}")).collect();
        anyhow::Error::msg(lines.join("\n"))
    })
}

impl Timed for FluxEngine {
    fn wait(&self) -> Result<(), EngineError> {
        Self::wait(self)
    }

    fn encode_text(&mut self, prompt: &str, tokens: usize) -> Result<(), EngineError> {
        Self::encode_text(self, prompt, tokens)
    }

    fn decode(&self, slot: Slot) -> Result<(), EngineError> {
        Self::decode(self, slot)
    }
}

/// What to dump.
#[derive(Debug, Clone, PartialEq)]
pub struct StagesRequest {
    /// The model.
    pub model: ModelSource,
    /// Device and engine settings.
    pub engine: EngineSettings,
    /// What to generate, not yet checked against the model's card.
    pub params: GenerateParams,
    /// Whether all steps are run, or only the first.
    pub whole: bool,
    /// The safetensors file to write.
    pub output: PathBuf,
}

/// Generates an image and writes its intermediate tensors.
///
/// # Errors
/// When the model cannot be loaded, the request is invalid, or the file cannot be written.
pub fn write_stages(config: &Config, request: StagesRequest) -> anyhow::Result<()> {
    let card = for_its_operator(card_of(&request.model));
    let spec = spec_of(&card, request.params)?;
    refuse_without_folder(&request.output)?;
    let mut engine = FluxEngine::load(&files_of(config, &request.model)?, with_faults(request.engine))?;
    let stages = engine.stages(&spec, request.whole)?;
    stages.write(&request.output).with_context(|| format!("writing `{}`", request.output.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> ImageSize {
        text.parse().expect("a size")
    }

    fn request(model: &str, sizes: &[&str]) -> TimeRequest {
        TimeRequest {
            model: model.parse().expect("a model"),
            engine: EngineSettings::default(),
            sizes: sizes.iter().map(|text| size(text)).collect(),
            counts: vec![1],
            mixed: false,
            steps: Vec::new(),
            repeats: 1,
            budget: None,
        }
    }

    fn sizes(request: &TimeRequest) -> anyhow::Result<Vec<ImageSize>> {
        sizes_of(request, &for_its_operator(card_of(&request.model)))
    }

    #[test]
    fn the_default_sizes_are_those_that_the_model_generates() {
        let of_flux = sizes(&request("black-forest-labs/FLUX.1-dev=/weights", &[])).expect("some");
        assert_eq!(of_flux, ["512x512", "768x768", "1024x1024", "2048x2048"].map(size));
        assert_eq!(sizes(&request("fluxserve/flux-shapes", &[])).expect("its own"), [size("128x128")]);
        let error = sizes(&request("fluxserve/flux-shapes", &["64x64", "512x64"])).expect_err("too wide");
        let text = format!("{error:#}");
        assert!(text.starts_with("--sizes 512x64: width: must be") && text.contains("256"), "{text}");
    }

    #[test]
    fn smaller_batches_come_first_and_one_image_is_no_batch() {
        let sets = several(&[size("512x512"), size("1024x1024")], &[1, 2, 8]);
        let pixels: Vec<u64> = sets.iter().map(|set| set.iter().map(|size| size.pixels()).sum()).collect();
        assert_eq!(pixels, [524_288, 2_097_152, 2_097_152, 8_388_608]);
        assert_eq!(sets.iter().map(Vec::len).collect::<Vec<_>>(), [2, 8, 2, 8]);
    }

    #[test]
    fn the_demo_model_is_timed_part_by_part() {
        let request = TimeRequest {
            counts: vec![1, 2],
            mixed: true,
            steps: vec![2],
            ..request("fluxserve/flux-shapes", &["64x64", "96x64"])
        };
        let mut heard = 0;
        let report = time(&Config::default(), &request, Arc::new(()), &mut |report| {
            heard += 1;
            assert_eq!(report.timings.len() + 1, heard);
            Ok(())
        })
        .expect("timed");
        let parts: Vec<String> = report.timings.iter().map(Timing::name).collect();
        let expected = [
            "text encoders",
            "step 64x64",
            "step 96x64",
            "decoder 64x64",
            "finish 64x64",
            "decoder 96x64",
            "finish 96x64",
            "admit 96x64",
            "image 96x64, 2 steps",
            "step 64x64 + 96x64",
            "step 2 × 64x64",
            "step 2 × 96x64",
        ];
        assert_eq!(parts, expected);
        let all_measured = report.timings.iter().all(|timing| matches!(timing.outcome, Outcome::Measured { .. }));
        assert!(all_measured && report.load_seconds > 0.0, "{report:?}");
        assert_eq!((report.kernels.attention.kernel, report.stopped), ("cpu", None));
        assert_eq!(report.timings[2].tokens, 24 + 6 * 4, "the model's 24 text tokens and 6 by 4 image tokens");
    }
}
