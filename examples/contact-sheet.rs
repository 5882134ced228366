//! Makes the image at the top of the README: runs `fluxserve generate` for each prompt below, and joins the images.
//!
//! `cargo build --release && cargo run --release --example contact-sheet -- models/flux-shapes/samples.png`

#![allow(clippy::print_stdout, reason = "a program")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Parser;
use image::{Rgb, RgbImage};

/// Row by row. Each one's seed is its index.
const PROMPTS: [&str; 18] = [
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a large pink heart on a white background",
    "a small white ring on a purple background",
    "a green triangle on an orange background",
    "a cyan diamond on a brown background",
    "a red circle left of a green square on a white background",
    "a blue star to the right of a pink heart on a black background",
    "a yellow ring above a blue cross on a gray background",
    "an orange diamond below a white star on a green background",
    "a large purple square and a small yellow circle on a cyan background",
    "a black cross under a red heart on a yellow background",
    "two white circles on a red background",
    "three yellow stars on a blue background",
    "four orange hearts on a purple background",
    "a green cross in the top left corner on a white background",
    "a pink triangle at the bottom right on a black background",
    "A big blue ring.",
];
const COLUMNS: u32 = 6;
const SIDE: u32 = 128;
const GAP: u32 = 4;

/// Makes a contact sheet.
#[derive(Debug, Parser)]
struct Options {
    /// The PNG file to write
    output: PathBuf,
    /// The `fluxserve` program
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/fluxserve"))]
    program: PathBuf,
}

fn generate(program: &Path, prompt: &str, seed: usize, folder: &Path) -> anyhow::Result<RgbImage> {
    let file = folder.join(format!("{seed}.png"));
    let status = Command::new(program)
        .args(["generate", "--model", "fluxserve/flux-shapes", "--prompt", prompt, "--seed", &seed.to_string()])
        .arg("--output")
        .arg(&file)
        .status()
        .with_context(|| format!("running `{}`: build it with `cargo build --release`", program.display()))?;
    if !status.success() {
        bail!("`{}` failed on `{prompt}`", program.display());
    }
    Ok(image::open(&file).with_context(|| format!("reading `{}`", file.display()))?.to_rgb8())
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let rows = (PROMPTS.len() as u32).div_ceil(COLUMNS);
    let across = |count: u32| count * (SIDE + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(across(COLUMNS), across(rows), Rgb([255, 255, 255]));
    for (seed, prompt) in PROMPTS.iter().enumerate() {
        let image = generate(&options.program, prompt, seed, folder.path())?;
        let position = |count: u32| i64::from(across(count));
        let (column, row) = (seed as u32 % COLUMNS, seed as u32 / COLUMNS);
        image::imageops::replace(&mut sheet, &image, position(column), position(row));
        println!("{prompt}");
    }
    sheet.save(&options.output).with_context(|| format!("writing `{}`", options.output.display()))
}
