//! What LoRAs cost a denoising step of the engine on the CPU, next to the same step without.
//!
//! `cargo bench --bench adapters` uses the tiny reference checkpoint; `FLUXSERVE_BENCH_CHECKPOINT=DIR` names another, like the
//! preset `wide` of `benches/gpu/make_weights.py`. `FLUXSERVE_BENCH_SIDE` is the side of one image in pixels, `…_SIDE_OF_EIGHT`
//! that of each of eight images, `…_STEPS` the number of timed steps and `…_RANKS` the ranks: `16,64`. LoRAs are made of random
//! numbers, for all linear layers of the blocks. All cases are timed in turn, a step of each after the other.

#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use fluxserve::app::Heap;
use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::adapter::{AdapterId, AdapterUse};
use fluxserve::domain::device::{DeviceChoice, EngineSettings};
use fluxserve::domain::engine::{Slot, StepEngine};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::model::{ModelCard, ModelFiles, ParameterDefaults};
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::engine::FluxEngine;
use serde_json::{Map, Value, json};

/// As in the program.
#[global_allocator]
static HEAP: Heap = Heap;

/// Images of a step with several.
const IMAGES: usize = 8;
/// Their adapters' rank.
const RANK_OF_EIGHT: usize = 16;

/// A step that is timed: its images, and the case that it is compared with.
struct Case {
    name: String,
    slots: Vec<Slot>,
    baseline: usize,
    seconds: Vec<f64>,
}

fn main() {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let checkpoint = std::env::var_os("FLUXSERVE_BENCH_CHECKPOINT").map_or(reference, PathBuf::from);
    let (side, side_of_eight) = (setting("SIDE", 512), setting("SIDE_OF_EIGHT", 256));
    let steps = setting("STEPS", 3).max(1);
    let ranks = std::env::var("FLUXSERVE_BENCH_RANKS").unwrap_or_else(|_| "16,64".to_owned());
    let ranks: Vec<usize> = ranks.split(',').map(|rank| rank.parse().expect("ranks, like `16,64`")).collect();
    let folder = tempfile::tempdir().expect("a folder for the adapters");
    let layers = layers(&checkpoint);
    let adapter = |number: u8, rank| lora(folder.path(), &layers, number, rank);

    let settings = EngineSettings::from(DeviceChoice::Auto);
    let mut engine = FluxEngine::load(&ModelFiles::Directory(checkpoint), settings).expect("the checkpoint loads");
    let mut card = card_or_flux_dev(&ModelId::new("benchmark"));
    card.limits.steps_max = steps + 1;
    let mut admit = |side: u32, seed: u64, loras: Vec<AdapterUse>| {
        card.defaults = ParameterDefaults { width: side, height: side, steps: steps + 1, guidance: 3.5 };
        engine.admit(&spec(&card, seed, loras)).expect("admits")
    };
    let case = |name: &str, slots, baseline| Case { name: name.to_owned(), slots, baseline, seconds: Vec::new() };
    let mut cases = vec![case(&format!("one image of {side}x{side}"), vec![admit(side, 0, Vec::new())], 0)];
    for (number, &rank) in (100..).zip(&ranks) {
        cases.push(case(&format!("the same with rank {rank}"), vec![admit(side, 0, vec![adapter(number, rank)])], 0));
    }
    let mut eight = |lora_of: &dyn Fn(u8) -> Vec<AdapterUse>| -> Vec<Slot> {
        (0..IMAGES as u8).map(|image| admit(side_of_eight, u64::from(image), lora_of(image))).collect()
    };
    let without = cases.len();
    let name = format!("{IMAGES} images of {side_of_eight}x{side_of_eight}");
    cases.push(case(&name, eight(&|_| Vec::new()), without));
    let one = adapter(0, RANK_OF_EIGHT);
    cases.push(case(&format!("the same with one of rank {RANK_OF_EIGHT}"), eight(&|_| vec![one.clone()]), without));
    let name = format!("with {IMAGES} of rank {RANK_OF_EIGHT}, next to those with one");
    cases.push(case(&name, eight(&|image| vec![adapter(image, RANK_OF_EIGHT)]), without + 1));

    for round in 0..=steps {
        for case in &mut cases {
            let start = Instant::now();
            engine.step(&case.slots).expect("steps");
            // The first one warms up.
            if round > 0 {
                case.seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let medians: Vec<f64> = cases.iter().map(|case| median(case.seconds.clone())).collect();
    for (case, seconds) in cases.iter().zip(&medians) {
        println!("{}: {seconds:.4} s, {:.3} times", case.name, seconds / medians[case.baseline]);
    }
}

fn setting(name: &str, default: u32) -> u32 {
    let text = std::env::var(format!("FLUXSERVE_BENCH_{name}")).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn spec(card: &ModelCard, seed: u64, loras: Vec<AdapterUse>) -> GenerateSpec {
    let params = GenerateParams { prompt: "a red fox".into(), seed, loras, ..GenerateParams::default() };
    GenerateSpec::new(params, card).expect("a valid request")
}

/// Names, inputs and outputs of the linear layers of the blocks, as diffusers calls them.
fn layers(checkpoint: &Path) -> Vec<(String, usize, usize)> {
    let text = std::fs::read_to_string(checkpoint.join("transformer/config.json")).expect("a configuration");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let number = |field: &str| config[field].as_u64().expect("a number") as usize;
    let width = number("num_attention_heads") * number("attention_head_dim");
    let wide = 4 * width;
    let square = |name: &str| (name.to_owned(), width, width);
    let mut layers = Vec::new();
    for block in 0..number("num_layers") {
        let names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
        let mut own: Vec<_> = names.iter().map(|name| square(&format!("attn.{name}"))).collect();
        for stream in ["", "_context"] {
            own.push((format!("ff{stream}.net.0.proj"), width, wide));
            own.push((format!("ff{stream}.net.2"), wide, width));
            own.push((format!("norm1{stream}.linear"), width, 6 * width));
        }
        layers.extend(own.into_iter().map(|(name, inputs, outputs)| {
            (format!("transformer.transformer_blocks.{block}.{name}"), inputs, outputs)
        }));
    }
    for block in 0..number("num_single_layers") {
        let mut own: Vec<_> = ["to_q", "to_k", "to_v"].iter().map(|name| square(&format!("attn.{name}"))).collect();
        own.push(("proj_mlp".to_owned(), width, wide));
        own.push(("proj_out".to_owned(), width + wide, width));
        own.push(("norm.linear".to_owned(), width, 3 * width));
        layers.extend(own.into_iter().map(|(name, inputs, outputs)| {
            (format!("transformer.single_transformer_blocks.{block}.{name}"), inputs, outputs)
        }));
    }
    layers
}

/// Writes an adapter of a rank for all layers, with small numbers that follow from its own number.
fn lora(folder: &Path, layers: &[(String, usize, usize)], number: u8, rank: usize) -> AdapterUse {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, inputs, outputs) in layers {
        for (factor, shape) in [("lora_A", [rank, *inputs]), ("lora_B", [*outputs, rank])] {
            let start = end;
            end += 4 * shape[0] * shape[1];
            let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
            header.insert(format!("{name}.{factor}.weight"), tensor);
        }
    }
    let header = Value::Object(header).to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let mut state = u32::from(number) + 1;
    file.extend((0..end / 4).flat_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // From -0.01 to 0.01.
        ((state >> 8) as f32 / (1 << 23) as f32 * 0.01 - 0.01).to_le_bytes()
    }));
    let path = folder.join(format!("{number}.safetensors"));
    std::fs::write(&path, file).expect("a file");
    AdapterUse { id: AdapterId::of_sha256([number; 32]), file: path.into(), scale: 1.0 }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
