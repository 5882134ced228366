//! `generate`: one image, from the engine to a file, without a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};

use super::hub::{hint, refuse_not_yet};
use super::kernel_trials::with_faults;
use super::models::files_of;
use crate::catalog::card_of;
use crate::config::Config;
use crate::decode::{decode, prepare};
use crate::domain::adapter::{AdapterId, AdapterUse, LORAS};
use crate::domain::conditioning::GivenImage;
use crate::domain::device::EngineSettings;
use crate::domain::engine::{EngineError, LoadObserver, StepEngine};
use crate::domain::format::OutputFormat;
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::model_source::ModelSource;
use crate::domain::provenance::Provenance;
use crate::domain::spec::{GenerateParams, GenerateSpec, PIXELS_PER_TOKEN_SIDE};
use crate::domain::step_cache::{CACHE, CACHE_THRESHOLD};
use crate::encode::encode_with;
use crate::engine::{FluxEngine, KernelChoices};
use crate::hub::sha256_of;

/// A request of the command `generate`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The model.
    pub model: ModelSource,
    /// Device and engine settings.
    pub engine: EngineSettings,
    /// What to generate, not yet checked against the model's card.
    pub params: GenerateParams,
    /// The input image.
    pub image: Option<PathBuf>,
    /// Adapters.
    pub loras: Vec<LoraFile>,
    /// Whether the file carries its provenance.
    pub writes_provenance: bool,
    /// The PNG file to write.
    pub output: PathBuf,
}

/// An adapter on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// Its file.
    pub file: PathBuf,
    /// What its changes are multiplied by.
    pub scale: f64,
}

/// Longest prompt on the command line, in characters: as much as a shell passes, not what a server can afford.
const PROMPT_CHARS_MAX: usize = 100_000;

/// Generates one image and writes it. Returns the kernels that were used. `on_load` observes loading, `on_step` is called with (steps done, steps in all).
///
/// # Errors
/// When the model cannot be loaded, the request is invalid, or the file cannot be written.
pub fn generate(
    config: &Config,
    request: GenerateRequest,
    on_load: Arc<dyn LoadObserver>,
    on_step: &mut dyn FnMut(u32, u32),
) -> anyhow::Result<KernelChoices> {
    refuse_not_yet(&request.model.id)?;
    let card = for_its_operator(card_of(&request.model));
    let mut params = request.params;
    let input = request.image.as_deref().map(read_image).transpose()?;
    params.images =
        input.map(|image| GivenImage::new("image", card.conditioning.main_role(), image)).into_iter().collect();
    params.loras = request.loras.iter().map(lora_of).collect::<anyhow::Result<_>>()?;
    let spec = GenerateSpec::new(prepare(params, &card), &card).map_err(|errors| {
        let lines: Vec<String> =
            errors.into_iter().map(|error| format!("{}: {}", option_of(&error.field), error.reason)).collect();
        anyhow::Error::msg(lines.join("\n"))
    })?;
    refuse_without_folder(&request.output)?;
    let files = files_of(config, &request.model)?;
    let engine = FluxEngine::load_watched(&files, with_faults(request.engine), on_load);
    let mut engine = engine.map_err(|error| anyhow!("{error}{}", hint(config, &request.model.id, &files)))?;
    let slot = engine.admit(&spec).map_err(|error| with_files(&error, spec.loras()))?;
    on_step(0, spec.steps());
    for step in 1..=spec.steps() {
        engine.step(&[slot])?;
        on_step(step, spec.steps());
    }
    let provenance =
        request.writes_provenance.then(|| Provenance::of(&spec, files.revision(), request.engine.precision));
    let bytes = encode_with(&engine.finish(slot)?, OutputFormat::Png, provenance.as_ref())?;
    write_atomically(&request.output, &bytes).with_context(|| format!("writing `{}`", request.output.display()))?;
    Ok(engine.kernels())
}

fn read_image(path: &Path) -> anyhow::Result<Arc<RgbImage>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
    let image = decode(&bytes).map_err(|error| anyhow!("--image: `{}` {error}", path.display()))?;
    Ok(Arc::new(image))
}

/// The use of an adapter, by its file's digest.
fn lora_of(lora: &LoraFile) -> anyhow::Result<AdapterUse> {
    let digest = sha256_of(&lora.file).with_context(|| format!("--lora: reading `{}`", lora.file.display()))?;
    Ok(AdapterUse { id: AdapterId::of_sha256(digest), file: lora.file.as_path().into(), scale: lora.scale })
}

/// An engine's error, which names adapters by their ids, with their files instead.
fn with_files(error: &EngineError, loras: &[AdapterUse]) -> anyhow::Error {
    let named = |text: String, lora: &AdapterUse| text.replace(lora.id.as_str(), &lora.file.display().to_string());
    anyhow::Error::msg(loras.iter().fold(error.to_string(), named))
}

/// Refuses a file in a missing folder, before anything is generated for it.
pub(super) fn refuse_without_folder(output: &Path) -> anyhow::Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("the folder of `{}` does not exist: create `{}` first", output.display(), folder.display());
    }
    Ok(())
}

/// The card without the limits that protect a shared worker from its clients.
pub(super) fn for_its_operator(mut card: ModelCard) -> ModelCard {
    card.prompt_chars_max = PROMPT_CHARS_MAX;
    card.limits.width_min = PIXELS_PER_TOKEN_SIDE;
    card.limits.height_min = PIXELS_PER_TOKEN_SIDE;
    card.input_images_max = card.input_images_max.max(1);
    card
}

/// The command-line option of a field.
fn option_of(field: &str) -> String {
    if field.starts_with(LORAS) {
        return "--lora".to_owned();
    }
    if field == CACHE_THRESHOLD {
        return format!("--{CACHE}");
    }
    format!("--{}", field.replace('_', "-"))
}

/// Writes a temporary file first, so that an incomplete image never has the file's name.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(name);
    let outcome = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if outcome.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&partial);
    }
    outcome
}
