//! The first-block cache: what it leaves out, that no image notices the caches of others, and what its memory is.

use std::path::Path;
use std::sync::Arc;

use super::support::{LATENTS, assert_close, card, diffusers_folders, engine, reference};
use crate::domain::adapter::{AdapterId, AdapterUse};
use crate::domain::byte_size::ByteSize;
use crate::domain::conditioning::{GivenImage, ImageRole};
use crate::domain::device::{DeviceChoice, EngineSettings, Offload};
use crate::domain::engine::{EngineError, Slot, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelFiles;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::step_cache::{StepCache, THRESHOLD_MAX};
use crate::engine::FluxEngine;
use crate::engine::models::flux1::Image;
use crate::engine::models::flux1::transformer::{CacheOutcome, CacheUse, Sequence};

/// Every step after the first leaves out blocks. Larger than what a request may ask for.
const ALWAYS: f64 = f64::MAX;

/// No step does, as long as something changes between steps.
const NEVER: f64 = f64::MIN_POSITIVE;

/// The folder in which the last blocks have a file of their own.
const LAST_BLOCKS: &str = "transformer/diffusion_pytorch_model-00003-of-00003.safetensors";

/// A request, and the threshold of its cache.
type Wanted = (GenerateSpec, Option<f64>);

fn wanted(threshold: Option<f64>, seed: u64, (width, height, steps): (u32, u32, u32)) -> GenerateParams {
    GenerateParams {
        prompt: "a red circle on a blue background".to_owned(),
        width: Some(width),
        height: Some(height),
        steps: Some(steps),
        sequence_length: Some(16 + seed as usize),
        seed,
        step_cache: threshold.map(|threshold| StepCache { threshold: threshold.min(THRESHOLD_MAX) }),
        ..GenerateParams::default()
    }
}

fn spec(params: GenerateParams) -> GenerateSpec {
    GenerateSpec::new(params, &card()).expect("a valid request")
}

/// One image with a cache.
fn one(threshold: f64, steps: u32) -> Wanted {
    (spec(wanted(Some(threshold), 1, (64, 64, steps))), Some(threshold))
}

/// Images with and without caches, which differ in everything else as well.
fn mixed() -> Vec<Wanted> {
    let image = |threshold, seed, size| (wanted(threshold, seed, size), threshold);
    let mut all = vec![
        image(Some(ALWAYS), 1, (64, 64, 5)),
        image(None, 2, (96, 64, 4)),
        image(Some(NEVER), 3, (32, 48, 6)),
        image(Some(0.1), 4, (64, 80, 8)),
        image(Some(ALWAYS), 5, (48, 48, 4)),
        image(Some(0.3), 6, (64, 64, 7)),
        image(None, 7, (16, 16, 3)),
        image(Some(ALWAYS), 8, (80, 64, 6)),
    ];
    all[3].0.negative_prompt = Some("blurry".to_owned());
    all[4].0.negative_prompt = Some(String::new());
    for (index, name) in [(0, "a1_peft"), (1, "b1_kohya"), (5, "g7_dora_peft")] {
        let file = reference("lora/adapters").join(format!("{name}.safetensors")).into();
        all[index].0.loras = vec![AdapterUse { id: AdapterId::of_sha256([index as u8; 32]), file, scale: 0.8 }];
    }
    let pixels = (0..80 * 64 * 3).map(|at| (at % 251) as u8).collect();
    let input = Arc::new(RgbImage::new(80, 64, pixels).expect("three bytes per pixel"));
    all[7].0.images = vec![GivenImage::new("image", ImageRole::Input, input)];
    all.into_iter().map(|(params, threshold)| (spec(params), threshold)).collect()
}

/// Admits an image, with a threshold that may be larger than those of requests.
fn admit(engine: &mut FluxEngine, (spec, threshold): &Wanted) -> Slot {
    let slot = engine.admit(spec).expect("admits");
    let image = engine.images.get_mut(&slot).expect("is admitted");
    image.step_cache = threshold.map(|threshold| StepCache { threshold });
    slot
}

/// The image, and how often blocks were left out.
type Generated = (RgbImage, u32);

fn finish(engine: &mut FluxEngine, slot: Slot) -> Generated {
    let skipped = engine.images[&slot].steps_skipped();
    (engine.finish(slot).expect("finishes"), skipped)
}

fn alone(engine: &mut FluxEngine, wanted: &Wanted) -> Generated {
    let slot = admit(engine, wanted);
    for _ in 0..wanted.0.steps() {
        engine.step(&[slot]).expect("steps");
    }
    finish(engine, slot)
}

/// Each image joins at its own step, and goes when it is done; another order in every step.
fn together(engine: &mut FluxEngine, all: &[Wanted], joins_at: &[usize]) -> Vec<Generated> {
    let mut generated: Vec<Option<Generated>> = vec![None; all.len()];
    let mut running: Vec<(usize, Slot)> = Vec::new();
    for turn in 0.. {
        for (index, wanted) in all.iter().enumerate().filter(|(index, _)| joins_at[*index] == turn) {
            running.push((index, admit(engine, wanted)));
        }
        if running.is_empty() {
            break;
        }
        let offset = turn % running.len();
        running.rotate_left(offset);
        let slots: Vec<Slot> = running.iter().map(|(_, slot)| *slot).collect();
        engine.step(&slots).expect("steps");
        for (index, slot) in std::mem::take(&mut running) {
            if engine.images[&slot].is_done() {
                generated[index] = Some(finish(engine, slot));
            } else {
                running.push((index, slot));
            }
        }
    }
    generated.into_iter().map(|generated| generated.expect("every image was finished")).collect()
}

#[test]
fn a_cache_that_leaves_nothing_out_changes_no_bit_and_one_that_always_does_runs_one_whole_step() {
    let mut engine = engine(&diffusers_folders());
    for steps in [1, 4] {
        let plain = alone(&mut engine, &(one(NEVER, steps).0, None));
        assert!(alone(&mut engine, &one(NEVER, steps)) == (plain.0.clone(), 0), "{steps} steps");
        let (image, skipped) = alone(&mut engine, &one(ALWAYS, steps));
        assert_eq!((skipped, image != plain.0), (steps - 1, steps > 1));
    }
}

/// The same step again: the first block changes what it changed, and all that the others would do is remembered.
#[test]
fn the_remembered_change_stands_for_the_blocks_that_are_left_out() {
    let mut engine = engine(&diffusers_folders());
    let all = mixed();
    for wanted in &all {
        admit(&mut engine, wanted);
    }
    let sequences: Vec<Sequence> = engine.images.values().flat_map(Image::sequences).collect();
    let transformer = &engine.model.transformer;
    let complete = transformer.predictions(&sequences).expect("predicts");
    let mut compared = 0;
    for (sequence, complete) in sequences.iter().zip(&complete) {
        let Some(outcome) = &complete.cached else {
            assert!(sequence.cache.is_none());
            continue;
        };
        let CacheOutcome::Complete(remembered) = outcome else { panic!("a first step is complete") };
        let cache = Some(CacheUse { threshold: NEVER, remembered: Some(remembered) });
        let again = transformer.predictions(&[Sequence { cache, ..*sequence }]).expect("predicts");
        assert!(matches!(again[0].cached, Some(CacheOutcome::Skipped)));
        assert_close("the velocity", &again[0].velocity, &complete.velocity, LATENTS);
        compared += 1;
    }
    assert_eq!(compared, 8, "six images with a cache, two of them in two passes");
}

#[test]
fn an_image_has_the_same_bits_alone_and_beside_images_with_and_without_caches() {
    let mut engine = engine(&diffusers_folders());
    let all = mixed();
    let expected: Vec<Generated> = all.iter().map(|wanted| alone(&mut engine, wanted)).collect();
    // Of the last, an input image leaves out some steps.
    for (index, passes) in [(0, 1), (4, 2), (7, 1)] {
        assert_eq!(expected[index].1, passes * (all[index].0.steps() - 1), "{index}");
    }
    assert!([1, 2, 6].iter().all(|index| expected[*index].1 == 0));
    for joins_at in [[0; 8], [0, 0, 1, 1, 2, 3, 3, 0], [2, 1, 0, 0, 0, 1, 2, 0]] {
        let found = together(&mut engine, &all, &joins_at);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected, "image {index}, joining at {joins_at:?}");
        }
    }
}

#[test]
fn a_canceled_image_leaves_nothing_behind() {
    let mut engine = engine(&diffusers_folders());
    let wanted = one(ALWAYS, 3);
    let expected = alone(&mut engine, &wanted);
    let canceled = admit(&mut engine, &wanted);
    for _ in 0..2 {
        engine.step(&[canceled]).expect("steps");
    }
    engine.release(canceled);
    assert!(engine.images.is_empty());
    assert!(alone(&mut engine, &wanted) == expected);
}

/// Settings with which every block is read for each step.
fn all_streamed() -> EngineSettings {
    EngineSettings { offload: Offload::Blocks, memory_budget: Some(ByteSize(1)), ..DeviceChoice::Cpu.into() }
}

#[test]
fn images_with_caches_have_the_same_bits_where_blocks_are_read_for_each_step() {
    let all = mixed();
    let mut resident = engine(&diffusers_folders());
    let mut streamed = FluxEngine::load(&diffusers_folders(), all_streamed()).expect("the checkpoint loads");
    let expected: Vec<Generated> = all.iter().map(|wanted| alone(&mut resident, wanted)).collect();
    assert!(together(&mut streamed, &all, &[0, 0, 1, 1, 2, 3, 3, 0]) == expected);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry").path();
        let target = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            std::fs::copy(&entry, target).expect("copied");
        }
    }
}

/// The file of the last blocks is empty while they are left out. A step that fails, and one that needs them, changes no cache.
#[test]
fn blocks_that_are_left_out_are_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&reference("FLUX.1-dev"), folder.path());
    let file = folder.path().join(LAST_BLOCKS);
    let bytes = std::fs::read(&file).expect("a shard");
    let files = ModelFiles::Directory(folder.path().to_owned());
    let mut streamed = FluxEngine::load(&files, all_streamed()).expect("loads");
    let (cached, plain) = (one(ALWAYS, 4), (one(ALWAYS, 4).0, None));
    let mut resident = engine(&diffusers_folders());
    let expected = [alone(&mut resident, &cached), alone(&mut resident, &plain)];
    let [one, other] = [&cached, &plain].map(|wanted| admit(&mut streamed, wanted));
    streamed.step(&[one, other]).expect("steps");
    std::fs::write(&file, []).expect("truncated");
    streamed.step(&[one]).expect("needs the first block alone");
    let error = streamed.step(&[one, other]).expect_err("a block is gone");
    assert!(error.to_string().contains("was truncated"), "{error}");
    std::fs::write(&file, &bytes).expect("written");
    streamed.step(&[other]).expect("steps");
    for _ in 0..2 {
        streamed.step(&[one, other]).expect("steps");
    }
    assert!([one, other].map(|slot| finish(&mut streamed, slot)) == expected);
}

#[test]
fn the_memory_of_caches_is_counted_and_ends_with_the_steps() {
    let mut engine = engine(&diffusers_folders());
    for wanted in mixed() {
        let slot = admit(&mut engine, &wanted);
        let planned = engine.images[&slot].cache_bytes();
        assert_eq!((planned > 0, engine.images[&slot].remembered_bytes()), (wanted.1.is_some(), 0));
        for _ in 1..wanted.0.steps() {
            engine.step(&[slot]).expect("steps");
            assert_eq!(engine.images[&slot].remembered_bytes(), planned);
        }
        engine.step(&[slot]).expect("steps");
        let image = &engine.images[&slot];
        assert_eq!((image.cache_bytes(), image.remembered_bytes()), (0, 0), "no step is left");
        engine.release(slot);
    }
}

#[test]
fn a_cache_waits_for_the_memory_of_others_and_is_refused_where_it_never_fits() {
    let mut engine = engine(&diffusers_folders());
    let wanted = one(1.0, 2);
    let first = admit(&mut engine, &wanted);
    let bytes = engine.images[&first].cache_bytes();
    // Twice 16 tokens of 64 numbers in f32.
    assert_eq!(bytes, 2 * 16 * 64 * 4);
    engine.caches_bytes_max = 2 * bytes - 1;
    assert!(matches!(engine.admit(&wanted.0), Err(EngineError::OutOfMemory(_))));
    engine.admit(&spec(wanted_without_cache())).expect("needs none of it");
    for _ in 0..2 {
        engine.step(&[first]).expect("steps");
    }
    let second = engine.admit(&wanted.0).expect("the first image is done");
    engine.release(second);
    engine.caches_bytes_max = bytes - 1;
    let error = engine.admit(&wanted.0).expect_err("too large");
    assert!(matches!(error, EngineError::Request(_)) && error.to_string().contains("leave out `cache`"), "{error}");
}

fn wanted_without_cache() -> GenerateParams {
    wanted(None, 2, (64, 64, 2))
}

#[test]
fn a_deterministic_engine_refuses_caches_by_name() {
    let settings = EngineSettings { is_deterministic: true, ..DeviceChoice::Cpu.into() };
    let mut engine = FluxEngine::load(&diffusers_folders(), settings).expect("the checkpoint loads");
    let error = engine.admit(&one(0.1, 2).0).expect_err("refused");
    let reason = "the worker runs with --deterministic, which allows no cache: leave out `cache`";
    assert_eq!(error, EngineError::Request(reason.to_owned()));
    engine.admit(&spec(wanted_without_cache())).expect("without a cache");
}
