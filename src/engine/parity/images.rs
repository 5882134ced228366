//! Every recorded case, step by step, from both layouts.

use candle_core::Tensor;

use super::cases::{Case, Cases};
use super::support::{
    CLIP, IMAGE, LATENTS, T5, Tensors, assert_close, diffusers_folders, engine, json, none, single_files, tensors,
};
use crate::domain::engine::{Slot, StepEngine as _};
use crate::domain::model::ModelFiles;
use crate::engine::FluxEngine;
use crate::engine::models::flux1::TokenGrid;

#[test]
fn the_inner_stages_of_a_step_equal_diffusers() {
    let mut engine = engine(&diffusers_folders());
    let stages = tensors("stages.safetensors");
    // The recorded tables have each frequency twice, side by side; text comes first.
    let rotary = engine.model.transformer.rotary(64, [4, 3], &[]).expect("tables");
    for (ours, theirs) in [(rotary.cos, "rope.0"), (rotary.sin, "rope.1")] {
        let once = stages[theirs].reshape((76, 8, 2)).and_then(|pairs| pairs.narrow(2, 0, 1)).expect("pairs");
        assert_close(theirs, &ours, &once, 1e-7);
    }
    let prompt = "a red circle on a blue background";
    let embedding = engine.model.embed(prompt, prompt, 64, &none()).expect("embeds");
    assert_close("clip", &embedding.pooled, &stages["case.clip_pooled"], CLIP);
    assert_close("t5", &embedding.sequence, &stages["case.t5_embeds"], T5);
    let text = engine.model.transformer.embed_text(&embedding.sequence, &none()).expect("text");
    assert_close("context_embedder", &text, &stages["context_embedder"], LATENTS);
    let condition = engine.model.transformer.embed_condition(&embedding.pooled, 3.5, &none());
    let condition = condition.expect("condition");
    let expected = (&stages["guidance_emb"] + &stages["text_emb"]).expect("sum");
    assert_close("guidance and text", &condition, &expected, LATENTS);
}

/// Row `index` of a recorded batch, without the batch dimension.
fn row_of(tensor: &Tensor, index: usize) -> Tensor {
    tensor.get(index).and_then(|row| row.contiguous()).expect("an image of the batch")
}

fn check_case(engine: &mut FluxEngine, case: &Case) {
    let recorded = tensors(&case.file);
    let specs = case.specs();
    let slots: Vec<_> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    engine.encode_rest(&slots).expect("encodes");
    for (index, spec) in specs.iter().enumerate() {
        let embedding = engine.model.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length(), &none());
        let embedding = embedding.expect("embeds");
        assert_close(&format!("{} clip", case.name), &embedding.pooled, &row_of(&recorded["clip_pooled"], index), CLIP);
        assert_close(&format!("{} t5", case.name), &embedding.sequence, &row_of(&recorded["t5_embeds"], index), T5);
        let packed = &engine.images[&slots[index]].latents;
        // Noise has torch's bits; an encoded image does not.
        let tolerance = if case.strength.is_some() { LATENTS } else { 0.0 };
        let expected = row_of(&recorded["latents_packed_init"], index);
        assert_close(&format!("{} first latents", case.name), packed, &expected, tolerance);
    }
    for step in 0..specs[0].steps() as usize {
        check_velocities(engine, case, &slots, &recorded, step);
        engine.step(&slots).expect("steps");
        if let Some(latents) = recorded.get("latents_steps") {
            for (index, slot) in slots.iter().enumerate() {
                let expected = row_of(&row_of(latents, step), index);
                assert_close(
                    &format!("{} latents {step}", case.name),
                    &engine.images[slot].latents,
                    &expected,
                    LATENTS,
                );
            }
        }
    }
    for (index, slot) in slots.into_iter().enumerate() {
        check_image(engine, case, slot, &recorded, index);
    }
}

fn check_velocities(engine: &FluxEngine, case: &Case, slots: &[Slot], recorded: &Tensors, step: usize) {
    let images: Vec<_> = slots.iter().map(|slot| &engine.images[slot]).collect();
    let sequences: Vec<_> = images.iter().flat_map(|image| image.sequences()).collect();
    let mut velocities = engine.model.transformer.velocities(&sequences).expect("predicts").into_iter();
    for index in 0..slots.len() {
        let mut check = |name: &str| {
            let expected = row_of(&row_of(&recorded[name], step), index);
            let found = velocities.next().expect("one velocity per sequence");
            assert_close(&format!("{} {name} {step}", case.name), &found, &expected, LATENTS);
        };
        check("noise_pred");
        if case.negative_prompt.is_some() {
            check("noise_pred_uncond");
        }
    }
}

fn check_image(engine: &mut FluxEngine, case: &Case, slot: Slot, recorded: &Tensors, index: usize) {
    let grid: TokenGrid = engine.images[&slot].grid;
    let latents = grid.unpack(&engine.images[&slot].latents).expect("unpacks");
    assert_close(&format!("{} final", case.name), &latents, &row_of(&recorded["latents_final"], index), LATENTS);
    let pixels = engine.model.decoder.decode(&latents).expect("decodes");
    let image = ((pixels / 2.0).expect("halves") + 0.5).and_then(|image| image.clamp(0.0_f32, 1.0)).expect("image");
    assert_close(&format!("{} image", case.name), &image, &row_of(&recorded["image"], index), IMAGE);
    let image = engine.finish(slot).expect("finishes");
    let expected =
        row_of(&recorded["image_u8"], index).flatten_all().and_then(|flat| flat.to_vec1::<u8>()).expect("u8");
    assert_eq!(image.pixels().len(), expected.len(), "{}", case.name);
    let off: Vec<u8> = image.pixels().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
    assert!(off.iter().all(|&difference| difference <= 1), "{}: off by more than one level", case.name);
    assert!(off.len() * 1000 <= expected.len(), "{}: {} of {} bytes off", case.name, off.len(), expected.len());
}

fn check_all_cases(files: &ModelFiles) {
    let mut engine = engine(files);
    let mut checked = 0;
    for case in &json::<Cases>("cases.json").cases {
        check_case(&mut engine, case);
        checked += 1;
    }
    assert!(engine.images.is_empty());
    assert_eq!(checked, 16, "every case");
}

#[test]
fn every_recorded_case_equals_diffusers_from_the_folders() {
    check_all_cases(&diffusers_folders());
}

#[test]
fn every_recorded_case_equals_diffusers_from_the_single_files() {
    check_all_cases(&single_files());
}
