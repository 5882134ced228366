//! Adapters that read a control image (FLUX.1-Canny-dev-lora, FLUX.1-Depth-dev-lora): the images of merged weights, and batch
//! invariance.

use candle_core::Tensor;

use super::adapters::{Case, Cases, used};
use super::family::{card_of, image_of};
use super::merged::{self, Merged};
use super::support::{
    AT_HIGH_GUIDANCE, LATENTS, MOMENTS, Tensors, assert_close, check_run, diffusers_folders, engine, first_of, json,
    reference, single_files, tensors,
};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::device::{DeviceChoice, EngineSettings};
use crate::domain::engine::{EngineError, Slot, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::weight_storage::WeightStorage;
use crate::engine::FluxEngine;

/// The tensors of a recorded run.
fn recorded(case: &Case) -> Tensors {
    tensors(&format!("family/lora/{}", case.file))
}

/// The request of a recorded run.
fn params_of(case: &Case) -> GenerateParams {
    let control = image_of(&recorded(case)["vae_encode.0.in"]);
    GenerateParams { images: vec![GivenImage::new("images[0]", ImageRole::Control, control)], ..case.params() }
}

fn cases() -> Vec<Case> {
    json::<Cases>("family/lora/cases.json").cases
}

fn spec(params: GenerateParams) -> GenerateSpec {
    GenerateSpec::new(params, &card_of(Conditioning::Prompt)).expect("a valid request")
}

fn check(engine: &mut FluxEngine, case: &Case) {
    let (name, recorded) = (&case.name, recorded(case));
    let pixels = &recorded["vae_encode.0.in"];
    let moments = engine.model.encoder.encode(pixels).expect("encodes");
    assert_close(&format!("{name} mean"), &moments.mean, &recorded["vae_encode.0.mean"], MOMENTS);
    let slot = engine.admit(&spec(params_of(case))).unwrap_or_else(|error| panic!("{name}: {error}"));
    while !engine.encode_part(slot).expect("encodes") {}
    let sequence = engine.images[&slot].sequences().next().expect("a pass");
    let input = Tensor::cat(&[sequence.latents, sequence.joined.expect("a control image")], 1).expect("joins");
    assert_close(&format!("{name} input"), &input, &first_of(&recorded["model_in_first"]), LATENTS);
    check_run(engine, (name, slot), &recorded, AT_HIGH_GUIDANCE);
}

#[test]
fn control_adapters_give_the_images_of_merged_weights() {
    for files in [diffusers_folders(), single_files()] {
        let mut engine = engine(&files);
        let cases = cases();
        for case in &cases {
            check(&mut engine, case);
        }
        assert_eq!(cases.len(), 3, "every case");
    }
}

#[test]
fn another_adapter_acts_beside_a_control_adapter_as_if_it_were_merged() {
    let (merged, cases) = (Merged::of_dev(), cases());
    let case = &cases[0];
    let with =
        |loras: &[AdapterUse]| spec(GenerateParams { loras: [&case.loras()[..], loras].concat(), ..params_of(case) });
    merged::check(&case.name, &[diffusers_folders(), merged.files()], merged.lora(), with);
}

fn together(engine: &mut FluxEngine, specs: &[GenerateSpec]) -> Vec<RgbImage> {
    let slots: Vec<Slot> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for _ in 0..specs[0].steps() {
        engine.step(&slots).expect("steps");
    }
    slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")).collect()
}

/// Inputs and norms of an adapter are those of its image alone.
#[test]
fn images_with_control_adapters_share_steps_with_others() {
    let cases = cases();
    let other = || used(&reference("lora/adapters/a1_peft.safetensors"), 0.7);
    let mut params: Vec<GenerateParams> = cases.iter().map(params_of).collect();
    params.push(GenerateParams { images: Vec::new(), loras: Vec::new(), ..params_of(&cases[0]) });
    params.push(GenerateParams { images: Vec::new(), loras: vec![other()], ..params_of(&cases[0]) });
    params.push(GenerateParams { loras: [cases[0].loras(), vec![other()]].concat(), ..params_of(&cases[0]) });
    let negative_prompt = Some("blurry".to_owned());
    params.push(GenerateParams { negative_prompt, true_cfg_scale: Some(2.0), ..params_of(&cases[2]) });
    // Between the others.
    params.swap(1, 3);
    let specs: Vec<GenerateSpec> = params.into_iter().map(spec).collect();
    let mut all = Vec::new();
    for weights in [WeightStorage::Expanded, WeightStorage::AsStored] {
        let settings = EngineSettings { weights, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(&diffusers_folders(), settings).expect("loads");
        all.push(specs.iter().flat_map(|spec| together(&mut engine, std::slice::from_ref(spec))).collect::<Vec<_>>());
        all.push(together(&mut engine, &specs));
    }
    for others in &all[1..] {
        for (index, (image, other)) in all[0].iter().zip(others).enumerate() {
            assert!(image.pixels() == other.pixels(), "image {index}");
        }
    }
    for (index, image) in all[0].iter().enumerate() {
        assert!(all[0][..index].iter().all(|other| other.pixels() != image.pixels()), "image {index}");
    }
}

#[test]
fn a_control_adapter_and_a_control_image_need_each_other() {
    let (case, mut engine) = (&cases()[0], engine(&diffusers_folders()));
    let mut refused = |params: GenerateParams| {
        let outcome = engine.admit(&spec(params));
        let Err(EngineError::Request(reason)) = outcome else { panic!("{outcome:?}") };
        reason
    };
    let reason = refused(GenerateParams { images: Vec::new(), ..params_of(case) });
    assert!(reason.contains("is a control adapter: a request with it needs exactly one control image"), "{reason}");
    let other = vec![used(&reference("lora/adapters/a1_peft.safetensors"), 1.0)];
    let reason = refused(GenerateParams { loras: other, ..params_of(case) });
    assert!(reason.contains("reads no control image"), "{reason}");
    // Without any, the card says so.
    let errors =
        GenerateSpec::new(GenerateParams { loras: Vec::new(), ..params_of(case) }, &card_of(Conditioning::Prompt));
    assert_eq!(errors.expect_err("no ControlNet")[0].reason, "this model takes no control images, not 1");
}
