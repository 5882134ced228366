//! The engine on a CUDA device. Ignored where there is none:
//!
//!     cargo test --release --features cuda --test gpu -- --ignored --test-threads 1 --nocapture
//!
//! Runs from the project's root, so that a machine without Rust can run the binary that another has built.

mod support;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::byte_size::ByteSize;
use fluxserve::domain::device::{DeviceChoice, EngineSettings, Kernels, Offload};
use fluxserve::domain::engine::{EngineError, Slot, StepEngine};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::model::{CompletedFiles, ModelFiles};
use fluxserve::domain::operation_group::OperationGroup;
use fluxserve::domain::precision::Precision;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::domain::weight_storage::WeightStorage;
use fluxserve::engine::{ExaminedDevice, FluxEngine, OperationEvent, run_operations};
use support::copy_folder;

const CUDA: DeviceChoice = DeviceChoice::Cuda(0);

/// Largest mean error of an image of the tiny checkpoint in bf16, of 1. That of diffusers' own bf16 is 0.006 to 0.013.
const MEAN_ERROR_MAX: f64 = 0.03;

fn reference(path: &str) -> PathBuf {
    Path::new("tests/reference").join(path)
}

fn load(settings: impl Into<EngineSettings>) -> FluxEngine {
    FluxEngine::load(&ModelFiles::Directory(reference("FLUX.1-dev")), settings).expect("the checkpoint loads")
}

fn spec(prompt: &str, [width, height]: [u32; 2], steps: u32, guidance: f64, seed: u64) -> GenerateSpec {
    let mut card = card_or_flux_dev(&ModelId::new("reference"));
    (card.limits.width_min, card.limits.height_min) = (16, 16);
    let params = GenerateParams {
        prompt: prompt.to_owned(),
        width: Some(width),
        height: Some(height),
        steps: Some(steps),
        guidance: Some(guidance),
        seed,
        ..GenerateParams::default()
    };
    GenerateSpec::new(params, &card).expect("a valid request")
}

fn generate(engine: &mut FluxEngine, spec: &GenerateSpec) -> RgbImage {
    let slot = engine.admit(spec).expect("admits");
    for _ in 0..spec.steps() {
        engine.step(&[slot]).expect("steps");
    }
    engine.finish(slot).expect("finishes")
}

/// The mean difference of two images, of 1.
fn mean_error(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)) / 255.0).sum::<f64>() / a.len() as f64
}

#[test]
#[ignore = "needs a CUDA device"]
fn every_operation_agrees_with_the_cpu() {
    let mut events = Vec::new();
    let mut keep = |event| {
        println!("{event:?}");
        events.push(event);
    };
    run_operations(CUDA, Kernels::Auto, &OperationGroup::ALL, &mut keep).expect("a CUDA device");
    let is_right = |event: &OperationEvent| match event {
        OperationEvent::Done(report) => report.failure.is_none(),
        OperationEvent::Skipped { .. } => true,
        OperationEvent::Stopped { .. } => false,
    };
    assert!(events.iter().all(is_right));
    let device = ExaminedDevice::open(CUDA).expect("a CUDA device").description();
    let is_hopper = ["H100", "H200", "GH200"].into_iter().any(|name| device.contains(name));
    let is_compared = events
        .iter()
        .any(|event| matches!(event, OperationEvent::Done(report) if report.group == OperationGroup::AttentionHopper));
    assert_eq!(is_compared, is_hopper, "{device}: a build for Hopper has its kernel");
}

#[test]
#[ignore = "needs a CUDA device"]
fn images_are_those_of_diffusers() {
    let cases = [
        ("a_64x64", spec("a red circle on a blue background", [64, 64], 4, 3.5, 42)),
        ("b_96x64", spec("A cat sleeping on a stack of books near the window", [64, 96], 6, 1.0, 7)),
        ("d3_empty", spec("", [64, 64], 2, 3.5, 3)),
        ("i_one_step", spec("a fluffy white dog", [48, 32], 1, 0.0, 64)),
    ];
    let streamed = EngineSettings { offload: Offload::Text, ..CUDA.into() };
    // Enough for an image of 512x512 and too little for one of a megapixel: then no block stays.
    let budget = Some(ByteSize(1300 << 20));
    let blocks = EngineSettings { offload: Offload::Blocks, memory_budget: budget, ..CUDA.into() };
    let portable = EngineSettings { kernels: Kernels::Portable, ..CUDA.into() };
    for settings in [CUDA.into(), streamed, blocks, portable] {
        let mut engine = load(settings);
        for (name, spec) in &cases {
            let expected = image::open(reference(&format!("cases/{name}.0.png"))).expect("an image").to_rgb8();
            let error = mean_error(generate(&mut engine, spec).pixels(), expected.as_raw());
            println!("{name}: mean error {error:.4}");
            assert!(error <= MEAN_ERROR_MAX, "{name}: {error}");
        }
    }
}

fn mixed() -> Vec<GenerateSpec> {
    vec![
        spec("a red circle on a blue background", [64, 64], 4, 3.5, 1),
        spec("a cat", [96, 64], 4, 1.0, 2),
        spec("an old wooden boat on a quiet beach", [32, 128], 4, 7.0, 3),
        spec("", [16, 16], 4, 0.0, 4),
        spec("neon signs reflected in a wet street", [512, 256], 4, 30.0, 5),
    ]
}

fn generate_batched(engine: &mut FluxEngine, specs: &[GenerateSpec]) -> Vec<RgbImage> {
    let slots: Vec<Slot> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for _ in 0..specs[0].steps() {
        engine.step(&slots).expect("steps");
    }
    slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn deterministic_images_have_the_same_bits_batched() {
    let settings = EngineSettings { is_deterministic: true, ..CUDA.into() };
    let mut engine = load(settings);
    let specs = mixed();
    let batched = generate_batched(&mut engine, &specs);
    for (spec, image) in specs.iter().zip(batched) {
        assert!(generate(&mut engine, spec) == image, "seed {}", spec.seed());
    }
}

/// Without `is_deterministic` the library may pick another algorithm for more rows, which rounds differently.
#[test]
#[ignore = "needs a CUDA device"]
fn batching_changes_no_more_than_rounding() {
    let mut engine = load(CUDA);
    let specs = mixed();
    let batched = generate_batched(&mut engine, &specs);
    for (spec, image) in specs.iter().zip(batched) {
        let unbatched = generate(&mut engine, spec);
        let error = mean_error(unbatched.pixels(), image.pixels());
        println!(
            "seed {}: {} (mean difference {error:.5})",
            spec.seed(),
            if error == 0.0 { "equal" } else { "differs" }
        );
        assert!(error <= MEAN_ERROR_MAX / 3.0, "seed {}: {error}", spec.seed());
    }
}

/// In fp8, on a device that supports it: near the images in full precision, and with `is_deterministic` batch-invariant.
#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn images_in_fp8_are_near_those_in_full_precision() {
    let fp8 = EngineSettings { precision: Precision::Fp8, is_deterministic: true, ..CUDA.into() };
    let (mut full, mut fp8) = (load(CUDA), load(fp8));
    let specs = mixed();
    let batched = generate_batched(&mut fp8, &specs);
    for (spec, image) in specs.iter().zip(batched) {
        let expected = generate(&mut full, spec);
        let error = mean_error(expected.pixels(), image.pixels());
        println!("seed {}: mean difference {error:.5}", spec.seed());
        assert!(error > 0.0 && error <= 3.0 * MEAN_ERROR_MAX, "seed {}: {error}", spec.seed());
        assert!(generate(&mut fp8, spec) == image, "seed {}", spec.seed());
    }
}

/// The weights of a file in e4m3 are multiplied as they are: near the images of its expanded weights in full precision.
#[test]
#[ignore = "needs a CUDA device of compute capability 8.9"]
fn a_file_in_e4m3_is_multiplied_as_it_is() {
    let files = CompletedFiles {
        path: reference("quant/fp8/flux1-dev-fp8-scaled.safetensors"),
        text_encoders: Vec::new(),
        vae: None,
        base: Some(ModelFiles::Directory(reference("FLUX.1-dev"))),
        attachments: fluxserve::domain::model::Attachments::default(),
    };
    let files = ModelFiles::Completed(Box::new(files));
    let fp8 = EngineSettings { precision: Precision::Fp8, weights: WeightStorage::AsStored, ..CUDA.into() };
    let (mut full, mut fp8) =
        (FluxEngine::load(&files, CUDA).expect("loads"), FluxEngine::load(&files, fp8).expect("loads"));
    for spec in &mixed() {
        let error = mean_error(generate(&mut full, spec).pixels(), generate(&mut fp8, spec).pixels());
        println!("seed {}: mean difference {error:.5}", spec.seed());
        assert!(error > 0.0 && error <= 3.0 * MEAN_ERROR_MAX, "seed {}: {error}", spec.seed());
    }
}

/// A recorded step that holds a number of the step it was recorded in gives another image from the third step on. Where a step
/// cannot be recorded, the log says so.
#[test]
#[ignore = "needs a CUDA device"]
fn steps_that_are_repeated_as_graphs_give_the_same_bits() {
    let (mut plain, mut graphs) = (load(CUDA), load(EngineSettings { uses_graphs: true, ..CUDA.into() }));
    // One composition for two images, another, and the first again.
    let specs = [
        spec("two eggs", [64, 64], 6, 3.5, 6),
        spec("a boat, and much else", [64, 64], 6, 2.0, 7),
        spec("a boat", [128, 64], 6, 3.5, 8),
        spec("two eggs", [64, 64], 5, 3.5, 9),
    ];
    for spec in &specs {
        assert!(generate(&mut graphs, spec) == generate(&mut plain, spec), "seed {}", spec.seed());
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn canceling_an_image_does_not_change_the_others() {
    let settings = EngineSettings { is_deterministic: true, ..CUDA.into() };
    let mut engine = load(settings);
    let (kept, dropped) = (spec("two eggs", [64, 64], 4, 3.5, 6), spec("a boat", [128, 128], 4, 3.5, 7));
    let slots = [engine.admit(&kept).expect("admits"), engine.admit(&dropped).expect("admits")];
    engine.step(&slots).expect("steps");
    engine.release(slots[1]);
    for _ in 1..kept.steps() {
        engine.step(&slots[..1]).expect("steps");
    }
    assert!(engine.finish(slots[0]).expect("finishes") == generate(&mut engine, &kept));
}

/// Allocates the device's memory until little is left.
fn ballast(left_bytes: usize) -> Vec<Tensor> {
    let device = Device::new_cuda(0).expect("a CUDA device");
    let mut ballast = Vec::new();
    let mut size = 8_usize << 30;
    while size >= left_bytes {
        match Tensor::zeros(size, DType::U8, &device).and_then(|block| device.synchronize().map(|()| block)) {
            Ok(block) => ballast.push(block),
            Err(_) => size /= 2,
        }
    }
    ballast
}

#[test]
#[ignore = "needs a CUDA device"]
fn out_of_memory_is_reported_and_survived() {
    let mut engine = load(CUDA);
    let small = spec("two eggs", [64, 64], 2, 3.5, 6);
    let before = generate(&mut engine, &small);
    let tokens_before = engine.limits().step_tokens_max;
    let held = ballast(64 << 20);
    let large = spec("a boat", [2048, 2048], 2, 3.5, 7);
    let refused = engine.admit(&large).and_then(|slot| {
        let stepped = engine.step(&[slot]).and_then(|()| engine.step(&[slot])).and_then(|()| engine.finish(slot));
        engine.release(slot);
        stepped
    });
    assert!(matches!(refused, Err(EngineError::OutOfMemory(_))), "{:?}", refused.map(|_| "an image"));
    println!("step limit {tokens_before} -> {} tokens", engine.limits().step_tokens_max);
    drop(held);
    assert!(generate(&mut engine, &small) == before, "the engine still works");
}

#[test]
#[ignore = "needs a CUDA device"]
fn nan_is_not_shown_as_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&reference("FLUX.1-dev"), folder.path());
    let file = folder.path().join("transformer/diffusion_pytorch_model-00001-of-00003.safetensors");
    let mut bytes = std::fs::read(&file).expect("a shard");
    // The last numbers of the file: all ones are NaN in every precision.
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    std::fs::write(&file, bytes).expect("written");
    let mut engine = FluxEngine::load(&ModelFiles::Directory(folder.path().to_owned()), CUDA).expect("loads");
    let spec = spec("two eggs", [64, 64], 2, 3.5, 6);
    let slot = engine.admit(&spec).expect("admits");
    for _ in 0..2 {
        engine.step(&[slot]).expect("steps");
    }
    assert_eq!(engine.finish(slot), Err(EngineError::NotFinite));
}
