//! Seconds per denoising step of the engine on the CPU.
//!
//! `cargo bench --bench engine_step` uses the tiny reference checkpoint; `FLUXSERVE_BENCH_CHECKPOINT=DIR` names another
//! and `FLUXSERVE_BENCH_IMAGES`, `…_SIDE`, `…_STEPS` set the number of images in the batch, their side in pixels and the
//! number of steps, `…_WEIGHTS` how weights are kept (`as-stored` or `expanded`), `…_PRECISION` the precision, and `…_DECODES` how often
//! an image is decoded.
//! `benches/step_against_diffusers.py` compares it with diffusers on the same weights.

#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::PathBuf;
use std::time::Instant;

use fluxserve::app::Heap;
use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::device::{DeviceChoice, EngineSettings};
use fluxserve::domain::engine::StepEngine;
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::model::{ModelFiles, ParameterDefaults};
use fluxserve::domain::precision::Precision;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::domain::weight_storage::WeightStorage;
use fluxserve::engine::FluxEngine;

/// As in the program.
#[global_allocator]
static HEAP: Heap = Heap;

fn setting(name: &str, default: u32) -> u32 {
    let text = std::env::var(format!("FLUXSERVE_BENCH_{name}")).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let checkpoint = std::env::var_os("FLUXSERVE_BENCH_CHECKPOINT").map_or(reference, PathBuf::from);
    let (images, side, steps) = (setting("IMAGES", 1), setting("SIDE", 512), setting("STEPS", 3).max(1));
    let weights = std::env::var("FLUXSERVE_BENCH_WEIGHTS")
        .map_or(WeightStorage::Auto, |word| word.parse().expect("`auto`, `as-stored` or `expanded`"));
    let precision = std::env::var("FLUXSERVE_BENCH_PRECISION")
        .map_or(Precision::Full, |word| word.parse().expect("`full`, `bf16` or `fp8`"));
    let settings = EngineSettings { weights, precision, ..DeviceChoice::Auto.into() };
    let mut engine = FluxEngine::load(&ModelFiles::Directory(checkpoint), settings).expect("the checkpoint loads");
    let mut card = card_or_flux_dev(&ModelId::new("benchmark"));
    card.defaults = ParameterDefaults { width: side, height: side, steps: steps + 1, guidance: 3.5 };
    card.limits.steps_max = steps + 1;
    let slots: Vec<_> = (0..images)
        .map(|seed| {
            let params =
                GenerateParams { prompt: "a red fox".into(), seed: u64::from(seed), ..GenerateParams::default() };
            engine.admit(&GenerateSpec::new(params, &card).expect("a valid request")).expect("admits")
        })
        .collect();
    engine.step(&slots).expect("warms up");
    let mut seconds: Vec<f64> = (0..steps)
        .map(|_| {
            let start = Instant::now();
            engine.step(&slots).expect("steps");
            start.elapsed().as_secs_f64()
        })
        .collect();
    println!("engine_step images={images} side={side} median_seconds={:.4}", median(&mut seconds));
    let mut seconds: Vec<f64> = (0..setting("DECODES", 0))
        .map(|_| {
            let start = Instant::now();
            engine.decode(slots[0]).expect("decodes");
            start.elapsed().as_secs_f64()
        })
        .collect();
    if !seconds.is_empty() {
        println!("engine_decode side={side} median_seconds={:.4}", median(&mut seconds));
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
