//! `fluxserve generate`: from the options to a [`GenerateRequest`]. The model's card is checked later.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::cache_argument::parse_cache;
use super::engine_args::EngineArgs;
use super::image_args::{ImageArgs, with_number};
use super::load_bar::LoadBar;
use super::models::with_progress;
use super::part_args::PartArgs;
use crate::app::{self, ChosenKernel, GenerateRequest, KernelChoices, LoraFile, Progress};
use crate::config::Config;
use crate::domain::device::DeviceChoice;
use crate::domain::model_source::{ModelParts, ModelSource};
use crate::domain::spec::{GenerateParams, PIXELS_PER_TOKEN_SIDE, SEED_MAX};
use crate::domain::step_cache::StepCache;

/// Options of `generate`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct GenerateArgs {
    /// The model, with the folder or file of its checkpoint unless it was downloaded
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// Download the model and its base from the hub first, as far as they are missing
    #[arg(long)]
    pub download: bool,
    /// The prompt; may be empty
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// A prompt for T5 instead of the first one
    #[arg(long = "prompt-2", value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt_2: Option<String>,
    /// What to avoid in the image; doubles the work
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative_prompt: Option<String>,
    /// How strongly to avoid it; above 1 [default: the model's]
    #[arg(long, value_name = "X", requires = "negative_prompt", allow_negative_numbers = true)]
    pub true_cfg_scale: Option<f64>,
    /// Width [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<u32>,
    /// Height [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<u32>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<u32>,
    /// How closely to follow the prompt [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Seed of the noise; the same seed yields the same image [default: random, and printed]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..=SEED_MAX))]
    pub seed: Option<u64>,
    /// Images.
    #[command(flatten)]
    pub images: ImageArgs,
    /// A LoRA, with its strength [default: 1]; repeatable
    #[arg(long = "lora", value_name = "FILE[=SCALE]", value_parser = parse_lora)]
    pub loras: Vec<LoraFile>,
    /// Leave out most of a step where its first block changes nearly what it changed before: faster, and another image. The
    /// threshold is above 0 and at most 1 [default: 0.08]
    #[arg(long, value_name = "first_block[=THRESHOLD]", value_parser = parse_cache)]
    pub cache: Option<StepCache>,
    /// T5 tokens to pad or truncate the prompt to [default: the model's]
    #[arg(long, value_name = "N")]
    pub max_sequence_length: Option<usize>,
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Options of the engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// File of the image
    #[arg(long, value_name = "FILE.png", value_parser = parse_output)]
    pub output: PathBuf,
}

fn parse_output(text: &str) -> Result<PathBuf, String> {
    let is_png = Path::new(text).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    if is_png { Ok(text.into()) } else { Err("the file's name must end in .png".to_owned()) }
}

fn parse_lora(text: &str) -> Result<LoraFile, String> {
    let (file, scale) = with_number(text)?;
    Ok(LoraFile { file, scale: scale.unwrap_or(1.0) })
}

impl GenerateArgs {
    /// The request of these options. Writes to `notes` what was chosen for the user.
    ///
    /// # Errors
    /// When there is no random seed, or `notes` cannot be written.
    pub(super) fn into_request(
        self,
        config: &Config,
        random_seed: impl FnOnce() -> anyhow::Result<u64>,
        notes: &mut dyn Write,
    ) -> anyhow::Result<GenerateRequest> {
        let seed = if let Some(seed) = self.seed {
            seed
        } else {
            let seed = random_seed()?;
            writeln!(notes, "seed: {seed}")?;
            seed
        };
        let width = in_patches("width", self.width, notes)?;
        let height = in_patches("height", self.height, notes)?;
        let params = GenerateParams {
            prompt: self.prompt,
            prompt_2: self.prompt_2,
            negative_prompt: self.negative_prompt,
            true_cfg_scale: self.true_cfg_scale,
            width,
            height,
            steps: self.steps,
            guidance: self.guidance,
            seed,
            sequence_length: self.max_sequence_length,
            // By their files, which are read later.
            images: Vec::new(),
            mask_padding: self.images.mask_padding,
            overlay: None,
            step_cache: self.cache,
            strength: self.images.strength,
            // By their files, which are read later.
            loras: Vec::new(),
        };
        let engine = config.engine_settings(config.device.first());
        let (images, attachments) = self.images.into_parts();
        let model = self.parts.of(self.model);
        Ok(GenerateRequest {
            model: ModelSource { parts: ModelParts { attachments, ..model.parts }, ..model },
            engine,
            params,
            images,
            loras: self.loras,
            writes_provenance: config.results.provenance,
            output: self.output,
        })
    }
}

/// Rounds a side down to a multiple of the patch, like diffusers, so that scripts for it work. The HTTP API refuses such sizes.
fn in_patches(name: &str, pixels: Option<u32>, notes: &mut dyn Write) -> std::io::Result<Option<u32>> {
    let Some(pixels) = pixels else { return Ok(None) };
    let rounded = pixels - pixels % PIXELS_PER_TOKEN_SIDE;
    if rounded != pixels {
        writeln!(notes, "{name} {pixels} is not a multiple of {PIXELS_PER_TOKEN_SIDE}: using {rounded}")?;
    }
    Ok(Some(rounded))
}

/// The request, with its model and base where they were downloaded to, if the configuration says so.
pub(super) async fn with_downloads(
    config: &Config,
    request: GenerateRequest,
    notes: &mut dyn Write,
) -> anyhow::Result<GenerateRequest> {
    if !config.hub.download {
        return Ok(request);
    }
    let source = request.model.clone();
    let find = async move |progress: &dyn Progress| app::local_model(config, &source, progress).await;
    Ok(GenerateRequest { model: with_progress(notes, find).await?, ..request })
}

/// Generates the image, with a progress bar on a terminal. Writes to `notes` which kernels a GPU used.
pub(super) fn run(config: &Config, request: GenerateRequest, notes: &mut dyn Write) -> anyhow::Result<()> {
    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{bar:40} step {pos}/{len}, {elapsed} elapsed, {eta} left")?);
    let outcome = app::generate(config, request, LoadBar::new()?, &mut |done, steps| {
        bar.set_length(steps.into());
        bar.set_position(done.into());
    });
    bar.finish_and_clear();
    Ok(notes.write_all(note_of(&outcome?).as_bytes())?)
}

/// A line for each operation that has several kernels. The CPU has no choice.
fn note_of(kernels: &KernelChoices) -> String {
    let named = [("attention", &kernels.attention), ("convolutions", &kernels.convolutions)];
    let chosen = named.into_iter().filter(|(_, chosen)| chosen.kernel != "cpu");
    let line = |(name, ChosenKernel { kernel, reason }): (&str, &ChosenKernel)| {
        format!("{name}: the {kernel} kernel: {reason}\n")
    };
    chosen.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_is_a_file_with_or_without_a_strength() {
        let parsed = |text| parse_lora(text).map(|LoraFile { file, scale }| (file.display().to_string(), scale));
        for (text, file, scale) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors=-0.5", "a.safetensors", -0.5),
            ("b=c/a=2.safetensors", "b=c/a=2.safetensors", 1.0),
            ("a=1=2e-1", "a=1", 0.2),
        ] {
            assert_eq!(parsed(text), Ok((file.to_owned(), scale)), "{text}");
        }
        assert!(parsed("").is_err() && parsed("=1").is_err());
    }

    #[test]
    fn the_kernels_of_a_gpu_are_noted_and_the_cpu_needs_no_note() {
        let of = |kernel, reason: &str| ChosenKernel { kernel, reason: reason.to_owned() };
        let mut kernels = KernelChoices { attention: of("cpu", "one"), convolutions: of("cpu", "one") };
        assert_eq!(note_of(&kernels), "");
        kernels = KernelChoices { attention: of("hopper", "it agrees"), convolutions: of("portable", "as configured") };
        let expected = "attention: the hopper kernel: it agrees\nconvolutions: the portable kernel: as configured\n";
        assert_eq!(note_of(&kernels), expected);
    }
}
