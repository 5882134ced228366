//! `fluxserve bench`: from the options to a request, and from what was timed to a table.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::EngineArgs;
use super::load_bar::LoadBar;
use super::table::write_table;
use crate::app::{
    self, Distance, FidelityReport, FidelityRequest, LoadReport, LoadRequest, Moved, Outcome, StagesRequest,
    TimeReport, TimeRequest, Timing,
};
use crate::config::{Config, Flags};
use crate::domain::device::DeviceChoice;
use crate::domain::image_size::ImageSize;
use crate::domain::model_source::ModelSource;
use crate::domain::spec::{GenerateParams, SEED_MAX};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time loading, text encoders, steps, decoding and whole images
    ///
    /// Each part is done once without being timed, then several times with; the table shows the median, the fastest and the
    /// slowest. Nothing else should run meanwhile.
    Time(TimeArgs),
    /// Time what stands between the start of the process and a model that draws, beside reading its files alone
    ///
    /// The files are read, the model is loaded until it has drawn its smallest image, and the files are read again, always
    /// by the same threads in the same pieces. The first reading says what the disk gives of files that are not in the page
    /// cache, the last what the page cache gives. Nothing else should run meanwhile.
    Load(LoadArgs),
    /// Write what stands between an image's stages into a file, to compare it with another implementation
    ///
    /// The file has the token ids (`clip_ids`, `t5_ids`), the embeddings (`clip_pooled`, `t5_embeds`), `sigmas`, the packed
    /// noise (`latents_init`), the model's first output (`velocity_first`), the latents after one step (`latents_first`) and,
    /// with --whole, after all (`latents_final`), and what the decoder makes (`pixels`) of the last of these
    /// (`decoded_latents`).
    Stages(StagesArgs),
    /// Say how far images in a lossy precision are from those in full
    ///
    /// Each prompt is drawn with each seed in full, and then again in the precision of --precision, fp8 if none is named. The
    /// table has how far they are apart, relative to the first: the model's first output, from the same noise; the latents
    /// after all steps; and the peak signal to noise of the pixels, in dB, which is the higher the closer they are. Noise
    /// that is nudged early may become another image, no worse than the first, so look at some before judging a number.
    Fidelity(FidelityArgs),
}

/// How an image is drawn.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Pixels [default: the model's]
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
    /// The model, with the folder of its checkpoint
    #[arg(long, value_name = "ID[=DIR]")]
    pub model: ModelSource,
    /// What to draw; can be repeated
    #[arg(long = "prompt", value_name = "TEXT", allow_hyphen_values = true, default_values = PROMPTS)]
    pub prompts: Vec<String>,
    /// Seeds of the noise, with commas between
    #[arg(long, value_name = "S", value_delimiter = ',', default_value = "0,1",
          value_parser = clap::value_parser!(u64).range(..=SEED_MAX))]
    pub seeds: Vec<u64>,
    /// How to draw it.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Where to draw: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// How to use it.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Also write the numbers into a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What is drawn where nothing is named.
const PROMPTS: [&str; 2] = ["a red circle on a blue background", "a green square above a yellow triangle"];

/// Options of `bench time`.
#[derive(Debug, Args)]
pub struct TimeArgs {
    /// The model, with the folder of its checkpoint
    #[arg(long, value_name = "ID[=DIR]")]
    pub model: ModelSource,
    /// Where to draw: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// How to use it.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Sizes of images, with commas between [default: those of 512x512, 768x768, 1024x1024 and 2048x2048 that the model
    /// draws]
    #[arg(long, value_name = "WxH", value_delimiter = ',')]
    pub sizes: Vec<ImageSize>,
    /// Images in one step, for each size, with commas between; 1 is always timed
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8",
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub counts: Vec<u8>,
    /// Also time images of all sizes up to a megapixel in one step together
    #[arg(long)]
    pub mixed: bool,
    /// Steps of whole images, with commas between; drawn at the largest size up to a megapixel
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "28,50",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub steps: Vec<u32>,
    /// Times that each part is timed; fewer where that takes more than ten seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub repeat: u8,
    /// Begin nothing that would end later than this, counted from the start
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub budget_seconds: Option<u64>,
    /// Also write what was timed into a file, which is brought up to date after each part
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The model, with the folder of its checkpoint
    #[arg(long, value_name = "ID[=DIR]")]
    pub model: ModelSource,
    /// Where to load it to: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// How to use it.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Load at once, without reading the files first: from the disk what is not in the page cache
    #[arg(long)]
    pub at_once: bool,
    /// Also write what was timed into a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench stages`.
#[derive(Debug, Args)]
pub struct StagesArgs {
    /// The model, with the folder of its checkpoint
    #[arg(long, value_name = "ID[=DIR]")]
    pub model: ModelSource,
    /// What to draw; may be empty
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// How to draw it.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Seed of the noise
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SEED_MAX))]
    pub seed: u64,
    /// T5 tokens the prompt is padded or cut to [default: the model's]
    #[arg(long, value_name = "N")]
    pub max_sequence_length: Option<usize>,
    /// Do all steps, not only the first
    #[arg(long)]
    pub whole: bool,
    /// Where to draw: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// How to use it.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
}

impl BenchCommand {
    /// What the options say of the device and its use.
    pub(super) fn apply(&self, flags: &mut Flags) {
        let (device, engine) = match self {
            Self::Time(arguments) => (arguments.device, &arguments.engine),
            Self::Load(arguments) => (arguments.device, &arguments.engine),
            Self::Stages(arguments) => (arguments.device, &arguments.engine),
            Self::Fidelity(arguments) => (arguments.device, &arguments.engine),
        };
        flags.device = device.map(Into::into);
        engine.clone().apply(flags);
    }
}

/// Measures.
pub(super) fn run(
    command: BenchCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        BenchCommand::Time(arguments) => time(arguments, config, out, notes),
        BenchCommand::Load(arguments) => load(arguments, config, out),
        BenchCommand::Fidelity(arguments) => fidelity(arguments, config, out, notes),
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
            let (model, whole) = (arguments.model, arguments.whole);
            let engine = config.engine_settings(config.device.first());
            app::write_stages(config, StagesRequest { model, engine, params, whole, output: arguments.out })
        }
    }
}

fn time(arguments: TimeArgs, config: &Config, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
    let request = TimeRequest {
        model: arguments.model,
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
    write_report(&report, out)
}

fn load(arguments: LoadArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let engine = config.engine_settings(config.device.first());
    let request = LoadRequest { model: arguments.model, engine, reads_before: !arguments.at_once };
    let report = app::load(config, &request, LoadBar::new()?)?;
    if let Some(file) = &arguments.json {
        write_json(file, &report)?;
    }
    write_load_report(&report, out)
}

fn write_load_report(report: &LoadReport, out: &mut dyn Write) -> anyhow::Result<()> {
    let LoadReport { model, device, readers, buffer_bytes, share_of_reading, seconds, .. } = report;
    writeln!(out, "{model} on {device}, {readers} threads read {} MiB at a time", buffer_bytes >> 20)?;
    let moved = |name: &str, moved: Moved| {
        let Moved { bytes, seconds, gigabytes_per_second } = moved;
        [
            name.to_owned(),
            format!("{:.2}", bytes as f64 / 1e9),
            format!("{seconds:.3}"),
            format!("{gigabytes_per_second:.2}"),
        ]
    };
    let before = report.reading_before.map(|before| moved("reading alone, before", before));
    let after = [moved("weights onto the device", report.weights), moved("reading alone, after", report.reading_after)];
    let rows: Vec<[String; 4]> = before.into_iter().chain(after).collect();
    write_table(out, ["WHAT", "GB", "SECONDS", "GB/S"], &rows)?;
    writeln!(out, "loaded at {:.0} % of the rate of reading alone, after\n", 100.0 * share_of_reading)?;
    let parts = report.parts.iter().map(|part| [part.name.to_owned(), format!("{:.3}", part.seconds)]);
    let rows: Vec<[String; 2]> = parts.chain([["ready".to_owned(), format!("{seconds:.3}")]]).collect();
    write_table(out, ["PART", "SECONDS"], &rows)?;
    if let Some(bytes) = report.resident_bytes_max {
        writeln!(out, "at most {:.2} GB of memory in use", bytes as f64 / 1e9)?;
    }
    Ok(())
}

fn write_json(file: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(file, text).with_context(|| format!("writing `{}`", file.display()))
}

fn fidelity(
    arguments: FidelityArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = FidelityRequest {
        model: arguments.model,
        engine: config.engine_settings(config.device.first()),
        prompts: arguments.prompts,
        seeds: arguments.seeds,
        size: arguments.image.size,
        steps: arguments.image.steps,
        guidance: arguments.image.guidance,
    };
    let report = app::fidelity(config, &request, &mut |done, all, precision| {
        Ok(writeln!(notes, "{precision}: image {done} of {all}")?)
    })?;
    if let Some(file) = &arguments.json {
        write_json(file, &report)?;
    }
    let FidelityReport { model, device, precision, width, height, steps, .. } = &report;
    writeln!(out, "{model} on {device}: {precision} (lossy) against full, {width}x{height}, {steps} steps")?;
    let rows: Vec<[String; 5]> = report.images.iter().map(distances).collect();
    Ok(write_table(out, ["PROMPT", "SEED", "VELOCITY", "LATENTS", "PSNR DB"], &rows)?)
}

fn distances(distance: &Distance) -> [String; 5] {
    let shown = |value: Option<f64>, factor: f64, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{:.2}{unit}", factor * value))
    };
    [
        distance.prompt.clone(),
        distance.seed.to_string(),
        shown(distance.velocity_first, 100.0, " %"),
        shown(distance.latents_final, 100.0, " %"),
        shown(distance.psnr_db, 1.0, ""),
    ]
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
