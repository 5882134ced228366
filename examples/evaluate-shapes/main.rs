//! Evaluates a model of colored shapes: generates the held-out prompts of `models/flux-shapes/held-out.jsonl` with the
//! engine, analyzes the images with plain image analysis, and prints what was right.
//!
//! `cargo run --release --example evaluate-shapes`; see `--help` for the rest.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

mod analysis;
mod judge;
mod outlines;
mod scene;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::StepEngine;
use fluxserve::domain::format::OutputFormat;
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::model::ModelFiles;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::encode::encode;
use fluxserve::engine::FluxEngine;

use judge::Score;
use outlines::Outlines;
use scene::Scene;

/// T5 tokens that the models of `models/flux-shapes/train` are trained with.
const SEQUENCE_LENGTH: usize = 24;

/// Judges images of held-out prompts.
#[derive(Debug, Parser)]
struct Options {
    /// Prompts and what their images must show, one JSON object a line
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/flux-shapes/held-out.jsonl"))]
    prompts: PathBuf,
    /// The model's folder
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/flux-shapes"))]
    model: PathBuf,
    /// Judge the images N.png of this folder instead of generating them, with N counting the prompts from 0
    #[arg(long, conflicts_with = "model")]
    images: Option<PathBuf>,
    /// Folder to keep the images that are not entirely right, as N.png
    #[arg(long)]
    keep_wrong: Option<PathBuf>,
    /// Only every Nth prompt
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Pixels a side, instead of the prompt's own size
    #[arg(long)]
    side: Option<u32>,
    /// Denoising steps
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// Value fed to the guidance embedding
    #[arg(long, default_value_t = 3.5)]
    guidance: f64,
    /// Fail unless color and background are right in 97 %, shape in 92 %, arrangement and count in 80 %
    #[arg(long)]
    gate: bool,
}

/// Source of the images.
enum Images {
    Generated(Box<FluxEngine>),
    Read(PathBuf),
}

impl Images {
    fn of(options: &Options) -> anyhow::Result<Self> {
        if let Some(folder) = &options.images {
            return Ok(Self::Read(folder.clone()));
        }
        let files = ModelFiles::Directory(options.model.clone());
        Ok(Self::Generated(Box::new(FluxEngine::load(&files, DeviceChoice::Auto)?)))
    }

    fn image(&mut self, index: usize, scene: &Scene, options: &Options) -> anyhow::Result<RgbImage> {
        match self {
            Self::Generated(engine) => generate(engine, scene, options),
            Self::Read(folder) => read(&folder.join(format!("{index}.png"))),
        }
    }
}

fn generate(engine: &mut FluxEngine, scene: &Scene, options: &Options) -> anyhow::Result<RgbImage> {
    let params = GenerateParams {
        prompt: scene.prompt.clone(),
        width: Some(options.side.unwrap_or(scene.width)),
        height: Some(options.side.unwrap_or(scene.height)),
        steps: Some(options.steps),
        guidance: Some(options.guidance),
        seed: scene.seed,
        sequence_length: Some(SEQUENCE_LENGTH),
        ..GenerateParams::default()
    };
    let spec = GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new("flux-shapes")))
        .map_err(|errors| anyhow::anyhow!("`{}`: {errors:?}", scene.prompt))?;
    let slot = engine.admit(&spec)?;
    for _ in 0..spec.steps() {
        engine.step(&[slot])?;
    }
    Ok(engine.finish(slot)?)
}

fn read(path: &Path) -> anyhow::Result<RgbImage> {
    let image = image::open(path).with_context(|| format!("reading `{}`", path.display()))?.to_rgb8();
    let (width, height) = image.dimensions();
    RgbImage::new(width, height, image.into_raw()).context("three bytes for each pixel")
}

fn prompts(options: &Options) -> anyhow::Result<Vec<(usize, Scene)>> {
    let path = &options.prompts;
    let text = std::fs::read_to_string(path).with_context(|| format!("reading `{}`", path.display()))?;
    let scenes = text.lines().enumerate().step_by(options.every.max(1)).map(|(index, line)| {
        let scene = serde_json::from_str(line).with_context(|| format!("`{}`, line {}", path.display(), index + 1))?;
        Ok((index, scene))
    });
    scenes.collect()
}

fn print(rows: &[(String, Score)]) {
    println!(
        "{:<10} {:>16} {:>16} {:>16} {:>16} {:>16} {:>16}",
        "", "background", "color", "shape", "arrangement", "count", "all right"
    );
    for (name, score) in rows {
        let Score { background, color, shape, arrangement, count, all_right } = score;
        println!("{name:<10} {background:>16} {color:>16} {shape:>16} {arrangement:>16} {count:>16} {all_right:>16}");
    }
}

fn passes(score: &Score) -> bool {
    let least = [
        (score.background, 97.0),
        (score.color, 97.0),
        (score.shape, 92.0),
        (score.arrangement, 80.0),
        (score.count, 80.0),
    ];
    least.iter().all(|(tally, percent)| tally.percent() >= *percent)
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let outlines = Outlines::new();
    let mut images = Images::of(&options)?;
    let mut rows: Vec<(String, Score)> = Vec::new();
    let mut all = Score::default();
    if let Some(folder) = &options.keep_wrong {
        std::fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
    }
    for (index, scene) in prompts(&options)? {
        let image = images.image(index, &scene, &options)?;
        let seen = analysis::look(&image, &outlines);
        if !rows.iter().any(|(kind, _)| *kind == scene.kind) {
            rows.push((scene.kind.clone(), Score::default()));
        }
        let (_, score) = rows.iter_mut().find(|(kind, _)| *kind == scene.kind).expect("just pushed");
        score.add(&scene, &seen);
        if all.add(&scene, &seen) {
            continue;
        }
        if let Some(folder) = &options.keep_wrong {
            println!("{index}: {}\n    seen: {seen:?}", scene.prompt);
            let path = folder.join(format!("{index}.png"));
            std::fs::write(&path, encode(&image, OutputFormat::Png)?)
                .with_context(|| format!("writing `{}`", path.display()))?;
        }
    }
    rows.push(("all".to_owned(), all));
    print(&rows);
    if options.gate && !passes(&all) {
        eprintln!("error: below the gate: background and color 97 %, shape 92 %, arrangement and count 80 %");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
