//! The engine as its callers see it, on the CPU: the images that diffusers generates from the same prompts, and batch
//! invariance.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fluxserve::catalog::{card_or_flux_dev, embedded_files};
use fluxserve::domain::byte_size::ByteSize;
use fluxserve::domain::conditioning::{GivenImage, ImageRole};
use fluxserve::domain::device::{DeviceChoice, EngineSettings, Offload};
use fluxserve::domain::engine::{EngineError, Slot, StepEngine};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::model::{ModelCard, ModelFiles};
use fluxserve::domain::precision::Precision;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::domain::weight_storage::WeightStorage;
use fluxserve::engine::FluxEngine;
use support::copy_folder;

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

/// The same engine in a precision.
fn engine_in(precision: Precision) -> FluxEngine {
    let settings = EngineSettings { precision, ..DeviceChoice::Cpu.into() };
    FluxEngine::load(&ModelFiles::Directory(reference("FLUX.1-dev")), settings).expect("the checkpoint loads")
}

fn engine() -> FluxEngine {
    FluxEngine::load(&ModelFiles::Directory(reference("FLUX.1-dev")), DeviceChoice::Cpu).expect("the checkpoint loads")
}

/// FLUX.1-dev's card, without the limits that some images here exceed.
fn card() -> ModelCard {
    let mut card = card_or_flux_dev(&ModelId::new("reference"));
    card.prompt_chars_max = 100_000;
    card.limits.width_min = 16;
    card.limits.height_min = 16;
    card.input_images_max = 1;
    card
}

fn spec(params: GenerateParams) -> GenerateSpec {
    GenerateSpec::new(params, &card()).expect("a valid request")
}

fn generate_unbatched(engine: &mut FluxEngine, spec: &GenerateSpec) -> RgbImage {
    let slot = engine.admit(spec).expect("admits");
    for _ in 0..spec.steps() {
        engine.step(&[slot]).expect("steps");
    }
    engine.finish(slot).expect("finishes")
}

fn read_png(path: &str) -> (u32, u32, Vec<u8>) {
    let image = image::open(reference(path)).expect("a reference image").to_rgb8();
    (image.width(), image.height(), image.into_raw())
}

/// From the prompt to the pixels: tokenizers, text encoders, torch's noise, schedule, transformer, decoder, rounding.
#[test]
fn a_seed_gives_the_image_of_diffusers() {
    let mut engine = engine();
    let cases = [
        ("a_64x64", "a red circle on a blue background", 64, 64, 4, 3.5, 42),
        ("b_96x64", "A cat sleeping on a stack of books near the window", 64, 96, 6, 1.0, 7),
        ("d3_empty", "", 64, 64, 2, 3.5, 3),
        ("i_one_step", "a fluffy white dog", 48, 32, 1, 0.0, 64),
    ];
    for (name, prompt, width, height, steps, guidance, seed) in cases {
        let spec = spec(GenerateParams {
            prompt: prompt.to_owned(),
            width: Some(width),
            height: Some(height),
            steps: Some(steps),
            guidance: Some(guidance),
            seed,
            ..GenerateParams::default()
        });
        let image = generate_unbatched(&mut engine, &spec);
        let (expected_width, expected_height, expected) = read_png(&format!("cases/{name}.0.png"));
        assert_eq!((image.width(), image.height()), (expected_width, expected_height), "{name}");
        let differences: Vec<u8> = image.pixels().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).collect();
        assert!(differences.iter().all(|&difference| difference <= 1), "{name}: off by more than one level");
        let off = differences.iter().filter(|&&difference| difference > 0).count();
        assert!(off * 1000 <= expected.len(), "{name}: {off} of {} bytes off", expected.len());
    }
}

/// An input image.
fn stripes(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = (0..width * height * 3).map(|at| (at % 251) as u8).collect();
    Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"))
}

/// T5's blocks are copied to the device one by one, and a repeated prompt is in the cache.
#[test]
fn a_streamed_text_encoder_gives_the_same_bits() {
    let files = ModelFiles::Directory(reference("FLUX.1-dev"));
    let settings = EngineSettings { offload: Offload::Text, is_deterministic: true, ..DeviceChoice::Cpu.into() };
    let mut streamed = FluxEngine::load(&files, settings).expect("the checkpoint loads");
    let mut resident = engine();
    let image = |prompt: &str, seed| {
        spec(GenerateParams {
            prompt: prompt.to_owned(),
            width: Some(64),
            height: Some(64),
            steps: Some(2),
            seed,
            ..GenerateParams::default()
        })
    };
    for spec in [image("two eggs", 1), image("a boat", 1), image("two eggs", 2)] {
        assert!(
            generate_unbatched(&mut streamed, &spec) == generate_unbatched(&mut resident, &spec),
            "seed {}",
            spec.seed()
        );
    }
}

/// An input image of a request.
fn input(image: Arc<RgbImage>) -> GivenImage {
    GivenImage::new("images[0]", ImageRole::Input, image)
}

/// A mask that is white on the left.
fn mask(width: u32, height: u32) -> GivenImage {
    let pixel = |at: u32| [if at % width < width / 2 { 255 } else { 0 }; 3];
    let pixels = (0..width * height).flat_map(pixel).collect();
    let image = RgbImage::new(width, height, pixels).expect("three bytes per pixel");
    GivenImage::new("images[1]", ImageRole::Mask, Arc::new(image))
}

/// Eight images that differ in everything that may differ within a batch. Two of them have an input image, one of these a mask.
fn mixed() -> Vec<GenerateSpec> {
    let image = |prompt: &str, width, height, steps, guidance, seed, sequence_length| GenerateParams {
        prompt: prompt.to_owned(),
        width: Some(width),
        height: Some(height),
        steps: Some(steps),
        guidance: Some(guidance),
        seed,
        sequence_length: Some(sequence_length),
        ..GenerateParams::default()
    };
    let mut all = vec![
        image("a red circle on a blue background", 64, 64, 4, 3.5, 1, 512),
        image("a cat", 96, 64, 7, 1.0, 2, 256),
        image("an old wooden boat on a quiet beach at sunrise", 32, 128, 2, 7.0, 3, 40),
        image("", 16, 16, 5, 0.0, 4, 1),
        image("neon signs reflected in a wet street", 160, 112, 3, 30.0, 5, 100),
        image("two eggs", 48, 48, 1, 3.5, 6, 512),
        image("a bowl of ramen", 80, 64, 6, 3.5, 7, 64),
        image("a bowl of ramen", 80, 64, 6, 3.5, 8, 64),
    ];
    all[6].negative_prompt = Some("blurry, low quality".to_owned());
    all[6].true_cfg_scale = Some(4.0);
    all[1].images = vec![input(stripes(96, 64))];
    all[1].strength = Some(0.4);
    all[7].images = vec![input(stripes(80, 64)), mask(80, 64)];
    all.into_iter().map(spec).collect()
}

/// Admits each image at its own step, batches all admitted images, and finishes each when it is done.
fn generate_batched(engine: &mut FluxEngine, specs: &[GenerateSpec], joins_at: &[usize]) -> Vec<RgbImage> {
    let mut images: Vec<Option<RgbImage>> = vec![None; specs.len()];
    let mut running: Vec<(usize, Slot, u32)> = Vec::new();
    let mut largest_batch = 0;
    for turn in 0.. {
        for (index, spec) in specs.iter().enumerate().filter(|(index, _)| joins_at[*index] == turn) {
            running.push((index, engine.admit(spec).expect("admits"), spec.steps()));
        }
        if running.is_empty() && images.iter().all(Option::is_some) {
            break;
        }
        largest_batch = largest_batch.max(running.len());
        // Another order in every step: an image's position in the stream must not matter either.
        let offset = turn % running.len().max(1);
        running.rotate_left(offset);
        let slots: Vec<Slot> = running.iter().map(|(_, slot, _)| *slot).collect();
        engine.step(&slots).expect("steps");
        for (index, slot, left) in std::mem::take(&mut running) {
            if left == 1 {
                images[index] = Some(engine.finish(slot).expect("finishes"));
            } else {
                running.push((index, slot, left - 1));
            }
        }
    }
    assert!(largest_batch >= 5, "the images were batched");
    images.into_iter().map(|image| image.expect("every image was finished")).collect()
}

#[test]
fn an_image_has_the_same_bits_alone_and_batched() {
    check_batch_invariance(engine());
}

/// Each row is quantized with a scale of its own, or rounded.
#[test]
fn an_image_in_fp8_or_bf16_has_the_same_bits_alone_and_batched() {
    for precision in [Precision::Fp8, Precision::Bf16] {
        check_batch_invariance(engine_in(precision));
    }
}

fn check_batch_invariance(mut engine: FluxEngine) {
    let specs = mixed();
    let unbatched: Vec<RgbImage> = specs.iter().map(|spec| generate_unbatched(&mut engine, spec)).collect();
    for joins_at in [[0; 8], [0, 0, 1, 1, 2, 3, 3, 0], [3, 2, 0, 1, 0, 2, 0, 1]] {
        let batched = generate_batched(&mut engine, &specs, &joins_at);
        for (index, (unbatched, batched)) in unbatched.iter().zip(&batched).enumerate() {
            assert_eq!(unbatched.pixels(), batched.pixels(), "image {index}, joining at {joins_at:?}");
        }
    }
}

/// Settings with which every block is read for each step, and T5's for each prompt.
fn all_streamed() -> EngineSettings {
    EngineSettings { offload: Offload::Blocks, memory_budget: Some(ByteSize(1)), ..DeviceChoice::Cpu.into() }
}

#[test]
fn images_have_the_same_bits_where_blocks_are_read_for_each_step() {
    let specs = mixed();
    let mut resident = engine();
    let expected: Vec<RgbImage> = specs.iter().map(|spec| generate_unbatched(&mut resident, spec)).collect();
    for weights in [WeightStorage::AsStored, WeightStorage::Expanded] {
        let settings = EngineSettings { weights, ..all_streamed() };
        let files = ModelFiles::Directory(reference("FLUX.1-dev"));
        let mut streamed = FluxEngine::load(&files, settings).expect("the checkpoint loads");
        assert!(generate_unbatched(&mut streamed, &specs[0]) == expected[0], "{weights}");
        assert!(generate_batched(&mut streamed, &specs, &[0, 0, 1, 1, 2, 3, 3, 0]) == expected, "{weights}");
    }
}

#[test]
fn the_demo_model_has_the_same_bits_where_blocks_are_read_for_each_step() {
    let id = ModelId::new("fluxserve/flux-shapes");
    let files = embedded_files(&id).expect("compiled in");
    let params = GenerateParams { prompt: "a red circle".to_owned(), seed: 3, ..GenerateParams::default() };
    let spec = GenerateSpec::new(params, &card_or_flux_dev(&id)).expect("a valid request");
    let [resident, streamed] = [DeviceChoice::Cpu.into(), all_streamed()].map(|settings: EngineSettings| {
        let mut engine = FluxEngine::load(&files, settings).expect("the checkpoint loads");
        generate_unbatched(&mut engine, &spec)
    });
    assert!(resident == streamed);
}

/// The engine that could not read a block reads it in the next step.
#[test]
fn a_file_that_is_truncated_fails_the_step_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&reference("FLUX.1-dev"), folder.path());
    let file = folder.path().join("transformer/diffusion_pytorch_model-00001-of-00003.safetensors");
    let bytes = std::fs::read(&file).expect("a shard");
    let files = ModelFiles::Directory(folder.path().to_owned());
    let mut streamed = FluxEngine::load(&files, all_streamed()).expect("loads");
    let spec = &mixed()[0];
    let expected = generate_unbatched(&mut engine(), spec);
    let slot = streamed.admit(spec).expect("admits");
    streamed.step(&[slot]).expect("steps");
    std::fs::write(&file, []).expect("truncated");
    let error = streamed.step(&[slot]).expect_err("a block is gone");
    assert!(matches!(error, EngineError::Fatal(_)) && error.to_string().contains("was truncated"), "{error}");
    std::fs::write(&file, &bytes).expect("written");
    for _ in 1..spec.steps() {
        streamed.step(&[slot]).expect("steps");
    }
    assert!(streamed.finish(slot).expect("finishes") == expected);
}

/// A lossy precision changes an image, but not much.
#[test]
fn an_image_in_fp8_or_bf16_is_near_the_one_in_full_precision() {
    for (precision, least_db) in [(Precision::Fp8, 20.0), (Precision::Bf16, 30.0)] {
        let (mut full, mut lossy) = (engine(), engine_in(precision));
        for spec in &mixed()[..3] {
            let images = [generate_unbatched(&mut full, spec), generate_unbatched(&mut lossy, spec)];
            let [full, lossy] = images.each_ref().map(RgbImage::pixels);
            let squares = full.iter().zip(lossy).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
            let psnr_db = 10.0 * (255.0 * 255.0 * full.len() as f64 / squares).log10();
            assert!(squares > 0.0 && psnr_db > least_db, "{precision}, seed {}: {psnr_db} dB", spec.seed());
        }
    }
}

/// A NaN in the weights of a layer, in every precision.
#[test]
fn nan_is_not_shown_as_an_image() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&reference("FLUX.1-dev"), folder.path());
    let file = folder.path().join("transformer/diffusion_pytorch_model-00001-of-00003.safetensors");
    set_nan(&file, "transformer_blocks.0.ff.net.0.proj.weight");
    for precision in [Precision::Full, Precision::Bf16, Precision::Fp8] {
        let settings = EngineSettings { precision, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(&ModelFiles::Directory(folder.path().to_owned()), settings).expect("loads");
        let spec = &mixed()[5];
        let slot = engine.admit(spec).expect("admits");
        engine.step(&[slot]).expect("steps");
        assert_eq!(engine.finish(slot), Err(EngineError::NotFinite), "{precision}");
    }
}

/// Sets the first number of a tensor to NaN.
fn set_nan(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).expect("a shard");
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).expect("a header");
    let start = header[tensor]["data_offsets"][0].as_u64().expect("the tensor is in this shard") as usize;
    // All ones are NaN in every precision.
    bytes[8 + header_bytes + start..][..4].fill(0xff);
    std::fs::write(file, bytes).expect("written");
}

#[test]
fn an_image_decoded_in_parts_between_steps_has_the_same_bits() {
    let mut engine = engine();
    let specs = mixed();
    let expected = [generate_unbatched(&mut engine, &specs[0]), generate_unbatched(&mut engine, &specs[6])];
    let [first, second] = [&specs[0], &specs[6]].map(|spec| engine.admit(spec).expect("admits"));
    for _ in 0..specs[0].steps() {
        engine.step(&[first]).expect("steps");
    }
    let mut steps_left = specs[6].steps();
    let mut parts = 0;
    while !engine.decode_part(first).expect("decodes") {
        parts += 1;
        if steps_left > 0 {
            engine.step(&[second]).expect("steps");
            steps_left -= 1;
        }
    }
    assert!(parts > 5, "{parts} parts are few");
    assert!(engine.finish(first).expect("finishes") == expected[0]);
    for _ in 0..steps_left {
        engine.step(&[second]).expect("steps");
    }
    // Some of it in parts, the rest at once; and an image that is released half-way leaves nothing behind.
    engine.decode_part(second).expect("decodes");
    assert!(engine.finish(second).expect("finishes") == expected[1]);
    let third = engine.admit(&specs[0]).expect("admits");
    for _ in 0..specs[0].steps() {
        engine.step(&[third]).expect("steps");
    }
    engine.decode_part(third).expect("decodes");
    engine.release(third);
    assert!(matches!(engine.finish(third), Err(EngineError::Fatal(_))), "a released slot is gone");
}

#[test]
fn an_input_image_shows_more_with_less_strength() {
    let mut engine = engine();
    let input = stripes(64, 64);
    let mut generated = |strength| {
        let images = vec![self::input(Arc::clone(&input))];
        let prompt = "a red circle on a blue background".to_owned();
        let (steps, seed, width, height) = (Some(8), 5, Some(64), Some(64));
        let params = GenerateParams { prompt, steps, seed, width, height, strength, images, ..Default::default() };
        generate_unbatched(&mut engine, &spec(params))
    };
    let by_strength = [0.125, 0.5, 1.0].map(|strength| generated(Some(strength)));
    assert!(generated(None) == generated(Some(0.6)), "the default of diffusers");
    let [little, half, all] = &by_strength;
    let distance = |one: &RgbImage, other: &RgbImage| -> u64 {
        one.pixels().iter().zip(other.pixels()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
    };
    assert!(
        distance(little, all) > distance(half, all) && distance(half, all) > 0,
        "it moves towards the image without an input"
    );
}

#[test]
fn an_image_encoded_in_parts_between_steps_has_the_same_bits() {
    let mut engine = engine();
    let specs = mixed();
    let expected = [generate_unbatched(&mut engine, &specs[7]), generate_unbatched(&mut engine, &specs[0])];
    let [repainted, plain] = [&specs[7], &specs[0]].map(|spec| engine.admit(spec).expect("admits"));
    assert!(engine.encode_part(plain).expect("nothing to do"));
    let mut parts = 1;
    while !engine.encode_part(repainted).expect("encodes") {
        parts += 1;
        engine.step(&[plain]).expect("steps");
    }
    assert_eq!(parts, specs[0].steps() + 1, "a level each, and what is behind them");
    for _ in 0..specs[7].steps() {
        engine.step(&[repainted]).expect("steps");
    }
    assert!(engine.finish(repainted).expect("finishes") == expected[0]);
    assert!(engine.finish(plain).expect("finishes") == expected[1]);
}

#[test]
fn releasing_an_image_does_not_change_the_others() {
    let mut engine = engine();
    let specs = mixed();
    let expected = generate_unbatched(&mut engine, &specs[0]);
    let kept = engine.admit(&specs[0]).expect("admits");
    let dropped = engine.admit(&specs[4]).expect("admits");
    engine.step(&[dropped, kept]).expect("steps");
    engine.release(dropped);
    for _ in 1..specs[0].steps() {
        engine.step(&[kept]).expect("steps");
    }
    assert!(engine.finish(kept).expect("finishes") == expected);
    assert!(matches!(engine.step(&[dropped]), Err(EngineError::Fatal(_))), "a released slot is gone");
}

#[test]
fn finishing_an_image_with_steps_left_is_an_error() {
    let mut engine = engine();
    let slot = engine.admit(&mixed()[0]).expect("admits");
    assert!(matches!(engine.finish(slot), Err(EngineError::Request(_))));
}
