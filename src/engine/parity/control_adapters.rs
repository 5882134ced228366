//! Adapters that read a control image (FLUX.1-Canny-dev-lora, FLUX.1-Depth-dev-lora): the images of merged weights, and batch
//! invariance.

use candle_core::Tensor;
use serde::Deserialize;

use super::adapters::used;
use super::family::{card_of, image_of};
use super::support::{
    IMAGE, LATENTS, MOMENTS, Tensors, assert_close, diffusers_folders, engine, json, reference, single_files, tensors,
};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::device::{DeviceChoice, EngineSettings};
use crate::domain::engine::{EngineError, Slot, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::weight_storage::WeightStorage;
use crate::engine::FluxEngine;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

/// A recorded run.
#[derive(Deserialize)]
struct Case {
    name: String,
    adapters: Vec<RecordedUse>,
    prompt: String,
    height: u32,
    width: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    max_sequence_length: usize,
    seed: u64,
    /// The file of its tensors.
    #[serde(rename = "case")]
    file: String,
}

#[derive(Deserialize)]
struct RecordedUse {
    file: String,
    scale: f64,
}

impl Case {
    fn recorded(&self) -> Tensors {
        tensors(&format!("family/lora/{}", self.file))
    }

    fn loras(&self) -> Vec<AdapterUse> {
        self.adapters.iter().map(|lora| used(&reference("lora").join(&lora.file), lora.scale)).collect()
    }

    fn control(&self) -> GivenImage {
        GivenImage::new("images[0]", ImageRole::Control, image_of(&self.recorded()["vae_encode.0.in"]))
    }

    fn params(&self) -> GenerateParams {
        GenerateParams {
            prompt: self.prompt.clone(),
            width: Some(self.width),
            height: Some(self.height),
            steps: Some(self.num_inference_steps),
            guidance: Some(self.guidance_scale),
            seed: self.seed,
            sequence_length: Some(self.max_sequence_length),
            images: vec![self.control()],
            loras: self.loras(),
            ..GenerateParams::default()
        }
    }
}

fn cases() -> Vec<Case> {
    json::<Cases>("family/lora/cases.json").cases
}

fn spec(params: GenerateParams) -> GenerateSpec {
    GenerateSpec::new(params, &card_of(Conditioning::Prompt)).expect("a valid request")
}

/// The only image of a recorded batch.
fn first_of(tensor: &Tensor) -> Tensor {
    tensor.get(0).expect("an image of the batch")
}

fn check(engine: &mut FluxEngine, case: &Case) {
    let (name, recorded) = (&case.name, case.recorded());
    let pixels = &recorded["vae_encode.0.in"];
    let moments = engine.model.encoder.encode(pixels).expect("encodes");
    assert_close(&format!("{name} mean"), &moments.mean, &recorded["vae_encode.0.mean"], MOMENTS);
    let slot = engine.admit(&spec(case.params())).unwrap_or_else(|error| panic!("{name}: {error}"));
    while !engine.encode_part(slot).expect("encodes") {}
    let sequence = engine.images[&slot].sequences().next().expect("a pass");
    let input = Tensor::cat(&[sequence.latents, sequence.joined.expect("a control image")], 1).expect("joins");
    assert_close(&format!("{name} input"), &input, &first_of(&recorded["model_in_first"]), LATENTS);
    for step in 0..case.num_inference_steps as usize {
        let of_step = |kind: &str| first_of(&recorded[kind].get(step).expect("a step"));
        let sequences: Vec<_> = engine.images[&slot].sequences().collect();
        let velocities = engine.model.transformer.velocities(&sequences).expect("predicts");
        assert_close(&format!("{name} noise_pred {step}"), &velocities[0], &of_step("noise_pred"), LATENTS);
        engine.step(&[slot]).expect("steps");
        let latents = &engine.images[&slot].latents;
        assert_close(&format!("{name} latents {step}"), latents, &of_step("latents_steps"), LATENTS);
    }
    let image = &engine.images[&slot];
    let latents = image.grid.unpack(&image.latents).expect("unpacks");
    let pixels = engine.model.decoder.decode(&latents).expect("decodes");
    let image = ((pixels / 2.0).expect("halves") + 0.5).and_then(|image| image.clamp(0.0_f32, 1.0)).expect("image");
    assert_close(&format!("{name} image"), &image, &recorded["image"], IMAGE);
    engine.release(slot);
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
    let mut params: Vec<GenerateParams> = cases.iter().map(Case::params).collect();
    params.push(GenerateParams { images: Vec::new(), loras: Vec::new(), ..cases[0].params() });
    params.push(GenerateParams { images: Vec::new(), loras: vec![other()], ..cases[0].params() });
    params.push(GenerateParams { loras: [cases[0].loras(), vec![other()]].concat(), ..cases[0].params() });
    let negative_prompt = Some("blurry".to_owned());
    params.push(GenerateParams { negative_prompt, true_cfg_scale: Some(2.0), ..cases[2].params() });
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
    let reason = refused(GenerateParams { images: Vec::new(), ..case.params() });
    assert!(reason.contains("is a control adapter: a request with it needs exactly one control image"), "{reason}");
    let other = vec![used(&reference("lora/adapters/a1_peft.safetensors"), 1.0)];
    let reason = refused(GenerateParams { loras: other, ..case.params() });
    assert!(reason.contains("reads no control image"), "{reason}");
    // Without any, the card says so.
    let errors =
        GenerateSpec::new(GenerateParams { loras: Vec::new(), ..case.params() }, &card_of(Conditioning::Prompt));
    assert_eq!(errors.expect_err("no ControlNet")[0].reason, "this model takes no control images, not 1");
}
