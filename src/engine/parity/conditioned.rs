//! Every recorded run with images, stage by stage, from both layouts where there are both.

use candle_core::{Device, Tensor};

use super::family::{Case, Cases, Checkpoint, card_of, image_of};
use super::support::{
    CLIP, IMAGE, LATENTS, MOMENTS, T5, Tensors, assert_close, diffusers_folders, engine, none, single_files,
};
use crate::domain::conditioning::Conditioning;
use crate::domain::engine::{Slot, StepEngine as _};
use crate::domain::model::{ModelCard, ModelFiles};
use crate::engine::FluxEngine;
use crate::engine::models::flux1::{Image, pixels_of};

/// The runs of a folder, with its part of a name if it has those of several models.
struct Runs {
    folder: &'static str,
    name: &'static str,
    count: usize,
    /// The draw of the noise.
    noise: &'static str,
}

const KONTEXT: Runs = Runs { folder: "kontext", name: "", count: 7, noise: "draw.0" };
const FILL: Runs = Runs { folder: "fill", name: "", count: 8, noise: "draw.1" };
const CANNY: Runs = Runs { folder: "control", name: "canny", count: 3, noise: "draw.1" };
const DEPTH: Runs = Runs { folder: "control", name: "depth", count: 3, noise: "draw.1" };
const IMG2IMG: Runs = Runs { folder: "img2img", name: "", count: 6, noise: "draw.1" };
const INPAINT: Runs = Runs { folder: "inpaint", name: "", count: 8, noise: "draw.1" };

/// Row `index` of a recorded batch, without the batch dimension.
fn row_of(tensor: &Tensor, index: usize) -> Tensor {
    tensor.get(index).and_then(|row| row.contiguous()).expect("an image of the batch")
}

/// What the transformer is given of an image in its next step.
fn model_input(image: &Image) -> Tensor {
    let sequence = image.sequences().next().expect("a pass");
    let rows = match sequence.joined {
        Some(joined) => Tensor::cat(&[sequence.latents, joined], 1).expect("joins"),
        None => sequence.latents.clone(),
    };
    match sequence.references {
        Some(references) => Tensor::cat(&[&rows, references], 0).expect("follows"),
        None => rows,
    }
}

/// The pixels of images, and the distributions of their latents.
fn check_moments(engine: &FluxEngine, name: &str, recorded: &Tensors) {
    for index in 0..2 {
        let of = |kind: &str| recorded.get(&format!("vae_encode.{index}.{kind}"));
        let Some((pixels, mean)) = of("in").zip(of("mean")) else { continue };
        let pixels = pixels.narrow(0, 0, 1).and_then(|first| first.contiguous()).expect("the first");
        if index == 0 {
            let found = pixels_of(&image_of(&pixels), &Device::Cpu).expect("pixels");
            assert_close(&format!("{name} pixels"), &found, &pixels, 0.0);
        }
        let moments = engine.model.encoder.encode(&pixels).expect("encodes");
        let first = |tensor: &Tensor| tensor.narrow(0, 0, 1).expect("the first");
        assert_close(&format!("{name} mean {index}"), &moments.mean, &first(mean), MOMENTS);
        let variance = first(of("logvar").expect("recorded with the mean"));
        assert_close(&format!("{name} variance {index}"), &moments.log_variance, &variance, MOMENTS);
    }
}

fn check_case(engine: &mut FluxEngine, runs: &Runs, case: &Case, recorded: &Tensors, card: &ModelCard) {
    let name = &case.name;
    let specs = case.specs(recorded, card);
    check_moments(engine, name, recorded);
    let slots: Vec<Slot> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for (index, slot) in slots.iter().enumerate() {
        let grid = engine.images[slot].grid;
        let noise = recorded[runs.noise].narrow(0, index, 1).and_then(|noise| grid.pack(&noise)).expect("packs");
        assert_close(&format!("{name} noise"), &engine.images[slot].latents, &noise, 0.0);
        while !engine.encode_part(*slot).expect("encodes") {}
        let spec = &specs[index];
        let embedding = engine.model.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length(), &none());
        let embedding = embedding.expect("embeds");
        assert_close(&format!("{name} t5"), &embedding.sequence, &row_of(&recorded["t5_embeds"], index), T5);
        if let Some(expected) = recorded.get("clip_pooled") {
            assert_close(&format!("{name} clip"), &embedding.pooled, &row_of(expected, index), CLIP);
        }
        if let Some(expected) = recorded.get("model_in_first") {
            let found = model_input(&engine.images[slot]);
            assert_close(&format!("{name} input"), &found, &row_of(expected, index), LATENTS);
        }
    }
    for step in 0..case.steps_run as usize {
        check_step(engine, case, &slots, recorded, step);
    }
    for (index, slot) in slots.into_iter().enumerate() {
        check_image(engine, case, slot, recorded, index);
    }
}

fn check_step(engine: &mut FluxEngine, case: &Case, slots: &[Slot], recorded: &Tensors, step: usize) {
    let name = &case.name;
    let sequences: Vec<_> = slots.iter().flat_map(|slot| engine.images[slot].sequences()).collect();
    let mut velocities = engine.model.transformer.velocities(&sequences).expect("predicts").into_iter();
    for index in 0..slots.len() {
        let mut check = |kind: &str| {
            let expected = row_of(&row_of(&recorded[kind], step), index);
            let found = velocities.next().expect("one velocity per sequence");
            assert_close(&format!("{name} {kind} {step}"), &found, &expected, LATENTS);
        };
        check("noise_pred");
        if case.args.negative_prompt.is_some() {
            check("noise_pred_call1");
        }
    }
    engine.step(slots).expect("steps");
    for (index, slot) in slots.iter().enumerate() {
        let expected = row_of(&row_of(&recorded["latents_steps"], step), index);
        assert_close(&format!("{name} latents {step}"), &engine.images[slot].latents, &expected, LATENTS);
    }
}

fn check_image(engine: &mut FluxEngine, case: &Case, slot: Slot, recorded: &Tensors, index: usize) {
    let image = &engine.images[&slot];
    let latents = image.grid.unpack(&image.latents).expect("unpacks");
    let pixels = engine.model.decoder.decode(&latents).expect("decodes");
    let image = ((pixels / 2.0).expect("halves") + 0.5).and_then(|image| image.clamp(0.0_f32, 1.0)).expect("image");
    // What is put back into a whole image is recorded after that alone.
    if case.args.padding_mask_crop.is_none() {
        assert_close(&format!("{} image", case.name), &image, &row_of(&recorded["image"], index), IMAGE);
    }
    engine.finish(slot).expect("finishes");
}

fn check_all(runs: &Runs, files: &ModelFiles, card: &ModelCard) {
    let (cases, mut engine) = (Cases::of(runs.folder), engine(files));
    let mut checked = 0;
    for case in cases.cases.iter().filter(|case| case.name.starts_with(runs.name)) {
        check_case(&mut engine, runs, case, &cases.tensors(runs.folder, case), card);
        checked += 1;
    }
    assert!(engine.images.is_empty());
    assert_eq!(checked, runs.count, "every case");
}

fn check_both_layouts(runs: &Runs, checkpoint: &Checkpoint) {
    check_all(runs, &checkpoint.files(), &checkpoint.card());
    if let Some(single) = checkpoint.single_file() {
        check_all(runs, &single, &checkpoint.card());
    }
}

#[test]
fn references_equal_diffusers() {
    check_both_layouts(&KONTEXT, &Checkpoint::kontext());
}

#[test]
fn filled_images_equal_diffusers() {
    check_both_layouts(&FILL, &Checkpoint::fill());
}

#[test]
fn controlled_images_equal_diffusers() {
    check_both_layouts(&CANNY, &Checkpoint::canny());
    check_both_layouts(&DEPTH, &Checkpoint::depth());
}

#[test]
fn images_from_an_input_image_equal_diffusers() {
    for files in [diffusers_folders(), single_files()] {
        check_all(&IMG2IMG, &files, &card_of(Conditioning::Prompt));
    }
}

#[test]
fn repainted_images_equal_diffusers() {
    for files in [diffusers_folders(), single_files()] {
        check_all(&INPAINT, &files, &card_of(Conditioning::Prompt));
    }
}
