//! `generate`: one image, from the engine to a file, without a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};

use super::cards::as_served;
use super::hub::{hint, refuse_not_yet};
use super::kernel_trials::with_faults;
use super::models::files_of;
use crate::catalog::card_of;
use crate::config::Config;
use crate::decode::{decode, prepare, put_back};
use crate::domain::adapter::{AdapterId, AdapterUse, LORAS};
use crate::domain::conditioning::{GivenImage, IMAGES, ImageOptions, ImageRole};
use crate::domain::device::EngineSettings;
use crate::domain::engine::{EngineError, LoadObserver, StepEngine};
use crate::domain::format::OutputFormat;
use crate::domain::model::ModelCard;
use crate::domain::model_source::ModelSource;
use crate::domain::provenance::Provenance;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES, PIXELS_PER_TOKEN_SIDE};
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
    /// Images.
    pub images: Vec<ImageFile>,
    /// Adapters.
    pub loras: Vec<LoraFile>,
    /// Whether the file carries its provenance.
    pub writes_provenance: bool,
    /// The PNG file to write.
    pub output: PathBuf,
}

/// An image on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFile {
    /// What it does.
    pub role: ImageRole,
    /// Its file.
    pub file: PathBuf,
    /// What else is said of it.
    pub options: ImageOptions,
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
    // Where the model is not here, what is wrong with the request is said first, unless the card depends on files.
    let files = match files_of(config, &request.model) {
        Err(error) if !request.model.parts.attachments.is_empty() => return Err(error),
        files => files,
    };
    let card = match &files {
        Ok(files) => as_served(card_of(&request.model), files)?,
        Err(_) => card_of(&request.model),
    };
    let card = for_its_operator(card);
    let mut params = request.params;
    params.images = request.images.iter().map(read_image).collect::<anyhow::Result<_>>()?;
    params.loras = request.loras.iter().map(lora_of).collect::<anyhow::Result<_>>()?;
    let spec = GenerateSpec::new(prepare(params, &card), &card).map_err(|errors| in_words(errors, &card))?;
    refuse_without_folder(&request.output)?;
    let files = files?;
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
    let generated = engine.finish(slot)?;
    let whole = spec.overlay().map(|overlay| put_back(overlay, &generated));
    let bytes = encode_with(whole.as_ref().unwrap_or(&generated), OutputFormat::Png, provenance.as_ref())?;
    write_atomically(&request.output, &bytes).with_context(|| format!("writing `{}`", request.output.display()))?;
    Ok(engine.kernels())
}

fn read_image(given: &ImageFile) -> anyhow::Result<GivenImage> {
    let ImageFile { role, file, options } = given;
    let bytes = std::fs::read(file).with_context(|| format!("reading `{}`", file.display()))?;
    let image = decode(&bytes).map_err(|error| anyhow!("{}: `{}` {error}", option_of_role(*role), file.display()))?;
    Ok(GivenImage { options: options.clone(), ..GivenImage::new(field_of_role(*role), *role, Arc::new(image)) })
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

/// A request's errors, each with its command-line option.
fn in_words(errors: Vec<FieldError>, card: &ModelCard) -> anyhow::Error {
    let line = |FieldError { field, reason }: FieldError| {
        let option = match field.as_str() {
            INPUT_IMAGES => option_of_role(card.conditioning.main_role()).to_owned(),
            // How many images of a role there may be: the reason names it.
            IMAGES => {
                let named = ImageRole::ALL.into_iter().find(|role| reason.contains(&format!(" {role} image")));
                named.map_or("images", option_of_role).to_owned()
            }
            field => option_of(field),
        };
        format!("{option}: {reason}")
    };
    anyhow::Error::msg(errors.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The field of images of a role.
fn field_of_role(role: ImageRole) -> &'static str {
    match role {
        ImageRole::Input => "image",
        ImageRole::Mask => "mask",
        ImageRole::Control => "control_image",
        ImageRole::Reference => "reference",
        ImageRole::Style => "style",
    }
}

/// The command-line option of images of a role.
fn option_of_role(role: ImageRole) -> &'static str {
    match role {
        ImageRole::Input => "--image",
        ImageRole::Mask => "--mask",
        ImageRole::Control => "--control-image",
        ImageRole::Reference => "--reference",
        ImageRole::Style => "--style",
    }
}

/// The command-line option of a field.
fn option_of(field: &str) -> String {
    if field.starts_with(LORAS) {
        return "--lora".to_owned();
    }
    if field == CACHE_THRESHOLD {
        return format!("--{CACHE}");
    }
    match field.split_once('.') {
        // These need no prefix: nothing else has them.
        Some(("control_image", option @ ("controlnet" | "preprocess"))) => format!("--{option}"),
        Some(("control_image", option)) => format!("--control-{option}"),
        Some((image, _)) => format!("--{}", image.replace('_', "-")),
        None => format!("--{}", field.replace('_', "-")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::ids::ModelId;
    use crate::domain::image::RgbImage;

    #[test]
    fn errors_name_the_options_of_the_command_line() {
        for (field, option) in [
            ("true_cfg_scale", "--true-cfg-scale"),
            ("loras[0].scale", "--lora"),
            ("mask", "--mask"),
            ("mask_padding", "--mask-padding"),
            ("control_image", "--control-image"),
            ("control_image.mode", "--control-mode"),
            ("control_image.start", "--control-start"),
            ("control_image.controlnet", "--controlnet"),
            ("control_image.preprocess", "--preprocess"),
            ("style.scale", "--style"),
        ] {
            assert_eq!(option_of(field), option);
        }
        for role in ImageRole::ALL {
            assert_eq!(option_of(field_of_role(role)), option_of_role(role));
        }
    }

    #[test]
    fn images_that_a_model_does_not_take_are_named_by_their_options() {
        let card = for_its_operator(card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev")));
        let image = Arc::new(RgbImage::new(64, 64, vec![9; 64 * 64 * 3]).expect("three bytes per pixel"));
        let of = |role| GivenImage::new(field_of_role(role), role, Arc::clone(&image));
        let roles = [ImageRole::Input, ImageRole::Input, ImageRole::Control, ImageRole::Style, ImageRole::Style];
        let params = GenerateParams { images: roles.map(of).into(), ..GenerateParams::default() };
        let errors = GenerateSpec::new(params, &card).expect_err("too many");
        let expected = "--image: this model takes from 0 to 1 input images, not 2\n\
                        --control-image: this model takes no control images, not 1\n\
                        --style: this model takes no style images, not 2";
        assert_eq!(in_words(errors, &card).to_string(), expected);
    }
}
