//! `fluxserve bench`: from the options to a request, and from the report to a table.

mod fidelity;
mod kernels;
mod load;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::engine_args::EngineArgs;
use super::load_bar::LoadBar;
use super::part_args::PartArgs;
use super::table::write_table;
use crate::app::{self, ChosenKernel, KernelChoices, Outcome, StagesRequest, TimeReport, TimeRequest, Timing};
use crate::config::{Config, Flags};
use crate::domain::device::DeviceChoice;
use crate::domain::image_size::ImageSize;
use crate::domain::model_source::ModelSource;
use crate::domain::spec::{GenerateParams, SEED_MAX};
use kernels::KernelsArgs;

/// Commands that measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time loading, text encoders, steps, decoding and complete images
    ///
    /// Each part runs once untimed, then several times timed; the table shows median, minimum and maximum. Nothing else should
    /// run meanwhile.
    Time(TimeArgs),
    /// Time loading a model until it is ready, compared to only reading its files
    ///
    /// Reads the files, loads the model until it has generated its smallest image, and reads the files again, with the same
    /// threads and chunks. The first read shows the disk's rate for files that are not in the page cache, the last one the page
    /// cache's. Nothing else should run meanwhile.
    Load(LoadArgs),
    /// Time single kernels, without a model: attention, matrix products, convolutions and what is between them
    ///
    /// On a GPU in the shapes of an image of 1024x1024 pixels, on the CPU in small ones. Each kernel is launched three times
    /// untimed and 20 times timed, between two waits for the device. Nothing else should run meanwhile.
    Kernels(KernelsArgs),
    /// Export the intermediate tensors of an image, to compare them with another implementation
    ///
    /// The file has the token ids (`clip_ids`, `t5_ids`), the embeddings (`clip_pooled`, `t5_embeds`), `sigmas`, the packed
    /// noise (`latents_init`), the model's first output (`velocity_first`), the latents after one step (`latents_first`) and,
    /// with --whole, after all (`latents_final`), and the decoder's output (`pixels`) for the last of these
    /// (`decoded_latents`).
    Stages(StagesArgs),
    /// Compare images in a lossy precision with those in full precision, or with a cache with those without
    ///
    /// Generates each prompt with each seed in full precision, and again in the precision of --precision (fp8 by default). The
    /// table has their relative distances: of the model's first output, from the same noise; of the latents after all steps;
    /// and the peak signal-to-noise ratio of the pixels in dB, higher for closer images. A small early difference may lead to
    /// another image of the same quality, so look at some images before judging a number.
    ///
    /// With --cache-thresholds, generates each prompt with each seed without a cache between steps, and again with the first-block
    /// cache at each threshold, all in the precision of --precision (full by default). The table has how many steps left out all
    /// blocks but the first; the time of all steps, and its ratio to that without the cache; and the distances of the latents and
    /// the pixels. Nothing else should run meanwhile.
    Fidelity(FidelityArgs),
}

/// Options of an image.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Size in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    pub size: Option<ImageSize>,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<u32>,
    /// How closely to follow the prompt [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
}

/// Options of `bench fidelity`.
#[derive(Debug, Args)]
pub struct FidelityArgs {
    /// The model, with the folder or file of its checkpoint
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// A prompt; repeatable
    #[arg(long = "prompt", value_name = "TEXT", allow_hyphen_values = true, default_values = PROMPTS)]
    pub prompts: Vec<String>,
    /// Seeds of the noise, separated by commas
    #[arg(long, value_name = "S", value_delimiter = ',', default_value = "0,1",
          value_parser = clap::value_parser!(u64).range(..=SEED_MAX))]
    pub seeds: Vec<u64>,
    /// Options of the image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Thresholds of the first-block cache to compare with no cache, separated by commas, instead of precisions: 0.05,0.08,0.12
    #[arg(long, value_name = "T", value_delimiter = ',')]
    pub cache_thresholds: Vec<f64>,
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Options of the engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Also write the report into a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Default prompts.
const PROMPTS: [&str; 2] = ["a red circle on a blue background", "a green square above a yellow triangle"];

/// Options of `bench time`.
#[derive(Debug, Args)]
pub struct TimeArgs {
    /// The model, with the folder or file of its checkpoint
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Options of the engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Sizes of images, separated by commas [default: those of 512x512, 768x768, 1024x1024 and 2048x2048 that the model
    /// supports]
    #[arg(long, value_name = "WxH", value_delimiter = ',')]
    pub sizes: Vec<ImageSize>,
    /// Batch sizes, for each image size, separated by commas; 1 is always timed
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8",
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub counts: Vec<u8>,
    /// Also time a batch of images of all sizes up to a megapixel
    #[arg(long)]
    pub mixed: bool,
    /// Steps of complete images, separated by commas, at the largest size up to a megapixel
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "28,50",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub steps: Vec<u32>,
    /// Timed runs of each part; fewer if they take more than ten seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub repeat: u8,
    /// Skip parts that would end later than this, from the start
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub budget_seconds: Option<u64>,
    /// Also write the report into a file, updated after each part
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The model, with the folder or file of its checkpoint
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// Device to load it to: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Options of the engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Load without reading the files first, so from the disk if they are not in the page cache
    #[arg(long)]
    pub at_once: bool,
    /// Also write the report into a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench stages`.
#[derive(Debug, Args)]
pub struct StagesArgs {
    /// The model, with the folder or file of its checkpoint
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// The prompt; may be empty
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Options of the image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Seed of the noise
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SEED_MAX))]
    pub seed: u64,
    /// T5 tokens to pad or truncate the prompt to [default: the model's]
    #[arg(long, value_name = "N")]
    pub max_sequence_length: Option<usize>,
    /// Run all steps, not only the first
    #[arg(long)]
    pub whole: bool,
    /// Device: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Options of the engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
}

impl BenchCommand {
    /// Applies the options of device and engine.
    pub(super) fn apply(&self, flags: &mut Flags) {
        let (device, engine) = match self {
            Self::Kernels(arguments) => {
                flags.device = arguments.device.map(Into::into);
                flags.kernels = arguments.kernels;
                return;
            }
            Self::Time(arguments) => (arguments.device, &arguments.engine),
            Self::Load(arguments) => (arguments.device, &arguments.engine),
            Self::Stages(arguments) => (arguments.device, &arguments.engine),
            Self::Fidelity(arguments) => (arguments.device, &arguments.engine),
        };
        flags.device = device.map(Into::into);
        engine.clone().apply(flags);
    }
}

/// Runs the command.
pub(super) fn run(
    command: BenchCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        BenchCommand::Time(arguments) => time(arguments, config, out, notes),
        BenchCommand::Load(arguments) => load::run(arguments, config, out),
        BenchCommand::Kernels(arguments) => kernels::run(&arguments, config, out, notes),
        BenchCommand::Fidelity(arguments) => fidelity::run(arguments, config, out, notes),
        BenchCommand::Stages(arguments) => {
            let params = GenerateParams {
                prompt: arguments.prompt,
                width: arguments.image.size.map(|size| size.width),
                height: arguments.image.size.map(|size| size.height),
                steps: arguments.image.steps,
                guidance: arguments.image.guidance,
                seed: arguments.seed,
                sequence_length: arguments.max_sequence_length,
                ..GenerateParams::default()
            };
            let (model, whole) = (arguments.parts.of(arguments.model), arguments.whole);
            let engine = config.engine_settings(config.device.first());
            app::write_stages(config, StagesRequest { model, engine, params, whole, output: arguments.out })
        }
    }
}

fn time(arguments: TimeArgs, config: &Config, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
    let request = TimeRequest {
        model: arguments.parts.of(arguments.model),
        engine: config.engine_settings(config.device.first()),
        sizes: arguments.sizes,
        counts: arguments.counts.into_iter().map(usize::from).collect(),
        mixed: arguments.mixed,
        steps: arguments.steps,
        repeats: arguments.repeat.into(),
        budget: arguments.budget_seconds.map(Duration::from_secs),
    };
    let report = app::time(config, &request, LoadBar::new()?, &mut |report| {
        if let Some(file) = &arguments.json {
            write_json(file, report)?;
        }
        match report.timings.last() {
            None => writeln!(notes, "loaded in {:.2} s on {}", report.load_seconds, report.device)?,
            Some(timing) => writeln!(notes, "{}: {}", timing.name(), in_short(&timing.outcome))?,
        }
        Ok(())
    })?;
    write_report(&report, out)?;
    complete(report.stopped)
}

/// An error if a fault of the device ended the measurement early.
fn complete(stopped: Option<String>) -> anyhow::Result<()> {
    match stopped {
        Some(reason) => bail!("{reason}; the rest was not timed"),
        None => Ok(()),
    }
}

fn write_json(file: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(file, text).with_context(|| format!("writing `{}`", file.display()))
}

fn in_short(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Measured { median_seconds, .. } => format!("{} ms", milliseconds(*median_seconds)),
        Outcome::DoesNotFit { reason } => format!("does not fit: {reason}"),
        Outcome::Failed { reason } => format!("failed: {reason}"),
        Outcome::NoTime => "no time left".to_owned(),
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1}", seconds * 1000.0)
}

fn write_report(report: &TimeReport, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{} on {}, loaded in {:.2} s", report.model, report.device, report.load_seconds)?;
    let KernelChoices { attention, convolutions } = &report.kernels;
    let chosen = |ChosenKernel { kernel, reason }: &ChosenKernel| format!("{kernel} ({reason})");
    writeln!(out, "kernels: attention {}, convolutions {}", chosen(attention), chosen(convolutions))?;
    let rows: Vec<[String; 6]> = report.timings.iter().map(|timing| row(timing, report.step_tokens_max)).collect();
    Ok(write_table(out, ["WHAT", "TOKENS", "MEDIAN MS", "MIN", "MAX", "NOTE"], &rows)?)
}

fn row(timing: &Timing, step_tokens_max: usize) -> [String; 6] {
    let numbers = match &timing.outcome {
        Outcome::Measured { median_seconds, min_seconds, max_seconds, .. } => {
            [*median_seconds, *min_seconds, *max_seconds].map(milliseconds)
        }
        _ => ["-", "-", "-"].map(str::to_owned),
    };
    let note = match &timing.outcome {
        Outcome::Measured { .. } if timing.tokens > step_tokens_max => {
            format!("the worker puts at most {step_tokens_max} tokens into a step")
        }
        Outcome::Measured { repeats, .. } => format!("{repeats} times"),
        outcome => in_short(outcome),
    };
    let [median, min, max] = numbers;
    [timing.name(), timing.tokens.to_string(), median, min, max, note]
}
