//! The demo model generates what prompts ask for: from the prompt through tokenizers, text encoders, transformer,
//! schedule and decoder to pixels that plain image analysis reads. A fault in any of them shows as a wrong image.

#![allow(dead_code, reason = "the evaluator's modules, of which a test needs a part")]

#[path = "../examples/evaluate-shapes/analysis.rs"]
mod analysis;
#[path = "../examples/evaluate-shapes/outlines.rs"]
mod outlines;

use fluxserve::catalog::{card_or_flux_dev, embedded_files};
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::{Draft, Slot, StepEngine};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::engine::FluxEngine;

use analysis::{Seen, look};
use outlines::Outlines;

const MODEL: &str = "fluxserve/flux-shapes";

fn engine() -> FluxEngine {
    let files = embedded_files(&ModelId::new(MODEL)).expect("compiled in");
    FluxEngine::load(&files, DeviceChoice::Cpu).expect("the checkpoint loads")
}

fn spec(prompt: &str, size: [u32; 2], seed: u64) -> GenerateSpec {
    let params = GenerateParams {
        prompt: prompt.to_owned(),
        width: Some(size[0]),
        height: Some(size[1]),
        seed,
        ..GenerateParams::default()
    };
    GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new(MODEL))).expect("a valid request")
}

/// Generates all of them batched, each with its own size and number of steps.
fn generate(engine: &mut FluxEngine, specs: &[GenerateSpec]) -> Vec<RgbImage> {
    let slots: Vec<_> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    let most = specs.iter().map(GenerateSpec::steps).max().unwrap_or(0);
    for done in 0..most {
        let going: Vec<_> =
            slots.iter().zip(specs).filter(|(_, spec)| spec.steps() > done).map(|(slot, _)| *slot).collect();
        engine.step(&going).expect("steps");
    }
    slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")).collect()
}

fn objects(seen: &Seen) -> Vec<(&str, &str)> {
    seen.patches.iter().map(|patch| (patch.color.unwrap_or("?"), patch.shape.unwrap_or("?"))).collect()
}

#[test]
fn the_first_image_of_the_readme_matches_its_prompt() {
    let outlines = Outlines::new();
    let image = generate(&mut engine(), &[spec("a red circle on a blue background", [128, 128], 1)]);
    let seen = look(&image[0], &outlines);
    assert_eq!(seen.background, Some("blue"));
    assert_eq!(objects(&seen), [("red", "circle")]);
}

#[test]
fn batched_images_of_several_sizes_match_their_prompts() {
    let outlines = Outlines::new();
    let asked = [
        ("a green square on a white background", [128, 128], "white", ("green", "square")),
        ("a large yellow star on a blue background", [128, 96], "blue", ("yellow", "star")),
        ("a black ring on an orange background", [96, 96], "orange", ("black", "ring")),
        ("a large red heart on a white background", [96, 128], "white", ("red", "heart")),
    ];
    let specs: Vec<_> = (0..).zip(&asked).map(|(seed, (prompt, size, ..))| spec(prompt, *size, seed)).collect();
    let images = generate(&mut engine(), &specs);
    for (image, (prompt, _, background, thing)) in images.iter().zip(asked) {
        let seen = look(image, &outlines);
        assert_eq!(seen.background, Some(background), "{prompt}");
        assert_eq!(objects(&seen), [thing], "{prompt}");
    }
}

#[test]
fn objects_are_where_the_prompt_puts_them() {
    let outlines = Outlines::new();
    let prompt = "a red circle left of a green square on a white background";
    let image = generate(&mut engine(), &[spec(prompt, [128, 128], 3)]);
    let seen = look(&image[0], &outlines);
    let middle = |color| {
        let patch = seen.patches.iter().find(|patch| patch.color == Some(color));
        patch.unwrap_or_else(|| panic!("nothing {color} in {seen:?}")).center[0]
    };
    assert!(middle("red") + 0.2 < middle("green"), "{seen:?}");
}

/// The guidance value reaches the model: another value gives another image with the same seed.
#[test]
fn guidance_changes_the_image() {
    let with = |guidance| {
        let params = GenerateParams {
            prompt: "a purple diamond on a yellow background".to_owned(),
            guidance: Some(guidance),
            steps: Some(8),
            seed: 5,
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new(MODEL))).expect("a valid request")
    };
    let images = generate(&mut engine(), &[with(1.0), with(6.0)]);
    let apart = images[0].pixels().iter().zip(images[1].pixels()).filter(|(a, b)| a.abs_diff(**b) > 8).count();
    assert!(apart > 128 * 128 * 3 / 100, "only {apart} channels differ");
}

/// Small and rough, but of the right colors, and long before the end.
#[test]
fn a_preview_resembles_the_coming_image() {
    let mut engine = engine();
    let slot = engine.admit(&spec("a red circle on a blue background", [128, 96], 1)).expect("admits");
    assert_eq!(engine.preview(slot), Ok(None), "no step was done yet");
    for _ in 0..10 {
        engine.step(&[slot]).expect("steps");
    }
    let preview = engine.preview(slot).expect("room").expect("a preview");
    assert_eq!((preview.width(), preview.height()), (16, 12));
    let pixel = |x: usize, y: usize| &preview.pixels()[3 * (y * 16 + x)..][..3];
    let (corner, middle) = (pixel(1, 1), pixel(8, 6));
    assert!(corner[2] > corner[0].saturating_add(60), "blue: {corner:?}");
    assert!(middle[0] > middle[2].saturating_add(60), "red: {middle:?}");
}

/// All channels of an image, averaged over squares of `side` pixels.
fn averaged(image: &RgbImage, side: usize) -> Vec<f64> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut sums = vec![0.0; width / side * (height / side) * 3];
    for (at, value) in image.pixels().iter().enumerate() {
        let (row, column, channel) = (at / 3 / width, at / 3 % width, at % 3);
        sums[(row / side * (width / side) + column / side) * 3 + channel] += f64::from(*value);
    }
    sums.into_iter().map(|sum| sum / (side * side) as f64).collect()
}

/// Pearson's correlation of two equally long lists.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |of: fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| of(a - mean_a, b - mean_b)).sum::<f64>();
    sum(|a, b| a * b) / (sum(|a, _| a * a) * sum(|_, b| b * b)).sqrt()
}

/// Correlation between the image and the preview after the last step, which is made of the same latents.
fn likeness(engine: &mut FluxEngine, spec: &GenerateSpec) -> f64 {
    let slot = engine.admit(spec).expect("admits");
    for _ in 0..spec.steps() {
        engine.step(&[slot]).expect("steps");
    }
    let preview = engine.preview(slot).expect("room").expect("a preview");
    let image = engine.finish(slot).expect("finishes");
    correlation(&averaged(&preview, 1), &averaged(&image, 8))
}

#[test]
fn the_last_preview_is_the_downscaled_image_and_improves_with_every_image() {
    let asked = spec("a red circle on a blue background", [128, 128], 1);
    let new = likeness(&mut engine(), &asked);
    assert!(new >= 0.85, "{new}");
    let mut engine = engine();
    let prompts = ["a green square on a white background", "a yellow star on a red background", "a blue ring"];
    let others: Vec<_> = (20..).zip(prompts).map(|(seed, prompt)| spec(prompt, [128, 128], seed)).collect();
    generate(&mut engine, &others);
    let experienced = likeness(&mut engine, &asked);
    assert!(experienced >= 0.9 && experienced > new, "{new}, then {experienced}");
}

/// The whole draft of an image.
fn draft(engine: &mut FluxEngine, slot: Slot) -> RgbImage {
    loop {
        match engine.draft_part(slot).expect("room") {
            Draft::Unfinished => {}
            Draft::Done(image) => return image,
            Draft::Unavailable => panic!("no draft"),
        }
    }
}

/// A draft has the size of the image, resembles it long before the end, and changes nothing of it.
#[test]
fn drafts_are_decoded_as_the_image_and_leave_it_as_it_is() {
    let asked = spec("a red circle on a blue background", [128, 96], 4);
    let unseen = generate(&mut engine(), std::slice::from_ref(&asked)).remove(0);
    let mut engine = engine();
    let (slot, other) = (engine.admit(&asked).expect("admits"), engine.admit(&asked).expect("admits"));
    assert_eq!(engine.draft_part(slot), Ok(Draft::Unavailable), "no step was done yet");
    let mut likenesses = Vec::new();
    for _ in 0..asked.steps() {
        engine.step(&[slot]).expect("steps");
        likenesses.push(correlation(&averaged(&draft(&mut engine, slot), 1), &averaged(&unseen, 1)));
    }
    assert!(likenesses[asked.steps() as usize / 2] > 0.8, "{likenesses:?}");
    assert!(draft(&mut engine, slot) == unseen, "after the last step it is the image");
    // One of another image, and the image itself, drop an unfinished one.
    engine.step(&[other]).expect("steps");
    assert_eq!(engine.draft_part(slot), Ok(Draft::Unfinished));
    assert_eq!(engine.draft_part(other), Ok(Draft::Unfinished));
    assert_eq!(engine.decode_part(slot), Ok(false));
    assert_eq!(engine.draft_part(other), Ok(Draft::Unavailable), "the memory is for one decoding");
    assert!(engine.finish(slot).expect("finishes") == unseen);
    assert_eq!((draft(&mut engine, other).width(), engine.finish(other).is_err()), (128, true));
}

/// Previews do not change the image.
#[test]
fn an_image_has_the_same_bits_with_and_without_previews() {
    let generated = |engine: &mut FluxEngine, looks_on: bool| {
        let spec = spec("a red circle on a blue background", [128, 96], 4);
        let slot = engine.admit(&spec).expect("admits");
        for _ in 0..spec.steps() {
            engine.step(&[slot]).expect("steps");
            if looks_on {
                assert!(engine.preview(slot).expect("room").is_some());
            }
        }
        engine.finish(slot).expect("finishes")
    };
    let unseen = generated(&mut engine(), false);
    let mut engine = engine();
    assert!(generated(&mut engine, true) == unseen);
    assert!(generated(&mut engine, false) == unseen);
}
