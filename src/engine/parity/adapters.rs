//! Adapters: the images of diffusers, or of weights that were merged in float64, and batch invariance.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tempfile::TempDir;

use super::support::{
    CLIP, IMAGE, LATENTS, T5, assert_close, card, diffusers_folders, engine, json, reference, single_files, tensors,
};
use crate::domain::adapter::{AdapterId, AdapterUse};
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{DeviceChoice, EngineSettings, Offload};
use crate::domain::engine::{EngineError, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelFiles;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::weight_storage::WeightStorage;
use crate::engine::FluxEngine;
use crate::engine::noise::standard_normal;

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

/// The use of a file. Its id is as good as a digest here: another one for each path.
pub(super) fn used(file: &Path, scale: f64) -> AdapterUse {
    let mut digest = [0_u8; 32];
    for (index, byte) in file.display().to_string().bytes().enumerate() {
        digest[index % 32] = digest[index % 32].wrapping_mul(31).wrapping_add(byte);
    }
    AdapterUse { id: AdapterId::of_sha256(digest), file: file.into(), scale }
}

impl Case {
    fn spec(&self) -> GenerateSpec {
        let loras = self.adapters.iter().map(|lora| used(&reference("lora").join(&lora.file), lora.scale));
        self.spec_with(loras.collect(), self.seed)
    }

    fn spec_with(&self, loras: Vec<AdapterUse>, seed: u64) -> GenerateSpec {
        let params = GenerateParams {
            prompt: self.prompt.clone(),
            width: Some(self.width),
            height: Some(self.height),
            steps: Some(self.num_inference_steps),
            guidance: Some(self.guidance_scale),
            seed,
            sequence_length: Some(self.max_sequence_length),
            loras,
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card()).expect("a valid case")
    }
}

fn cases() -> Vec<Case> {
    json::<Cases>("lora/cases.json").cases
}

/// The only image of a recorded batch.
fn first_of(tensor: &Tensor) -> Tensor {
    tensor.get(0).expect("an image of the batch")
}

fn check(engine: &mut FluxEngine, case: &Case) {
    let (name, spec) = (&case.name, case.spec());
    let recorded = tensors(&format!("lora/{}", case.file));
    let slot = engine.admit(&spec).unwrap_or_else(|error| panic!("{name}: {error}"));
    if let Some(expected) = recorded.get("t5_embeds") {
        let adapters = engine.images[&slot].adapters.clone();
        let embedding = engine.model.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length(), &adapters);
        let embedding = embedding.expect("embeds");
        assert_close(&format!("{name} t5"), &embedding.sequence, expected, T5);
        assert_close(&format!("{name} clip"), &embedding.pooled, &recorded["clip_pooled"], CLIP);
    }
    for step in 0..spec.steps() as usize {
        let of_step = |name: &str| first_of(&recorded[name].get(step).expect("a step"));
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

fn check_all(files: &ModelFiles) {
    let mut engine = engine(files);
    let cases = cases();
    for case in &cases {
        check(&mut engine, case);
    }
    assert_eq!(cases.len(), 51, "every case");
}

#[test]
fn every_recorded_adapter_gives_its_image_from_the_folders() {
    check_all(&diffusers_folders());
}

#[test]
fn every_recorded_adapter_gives_its_image_from_the_single_files() {
    check_all(&single_files());
}

fn random_lora(folder: &TempDir, rank: usize) -> AdapterUse {
    random_lora_of("FLUX.1-dev/flux1-dev.safetensors", folder, rank)
}

/// A LoRA of random numbers on every linear layer of a transformer in the names of its authors, on all of which it acts.
pub(super) fn random_lora_of(transformer: &str, folder: &TempDir, rank: usize) -> AdapterUse {
    let numbers = |seed: usize, shape: (usize, usize)| {
        let mut numbers = standard_normal(seed as u64, 0, (shape.0 * shape.1).next_multiple_of(16));
        numbers.truncate(shape.0 * shape.1);
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).and_then(|numbers| numbers * 0.1);
        tensor.expect("a matrix")
    };
    let base = tensors(transformer);
    let mut names: Vec<_> = base.keys().filter(|name| base[*name].rank() == 2).collect();
    names.sort();
    let mut lora = HashMap::new();
    for (index, name) in names.into_iter().enumerate() {
        let (outputs, inputs) = base[name].dims2().expect("a matrix");
        let key = |factor: &str| format!("diffusion_model.{}", name.replace(".weight", factor));
        lora.insert(key(".lora_A.weight"), numbers(2 * index + rank, (rank, inputs)));
        lora.insert(key(".lora_B.weight"), numbers(2 * index + 1 + rank, (outputs, rank)));
    }
    let file = folder.path().join(format!("rank-{rank}.safetensors"));
    candle_core::safetensors::save(&lora, &file).expect("written");
    used(&file, 0.7)
}

/// Different adapters for each of several images: none, low ranks from 1 to 128, several at once, text encoders, and each algebra.
fn sets(folder: &TempDir) -> Vec<Vec<AdapterUse>> {
    let recorded = |name: &str, scale| used(&reference("lora/adapters").join(format!("{name}.safetensors")), scale);
    let random = |rank| random_lora(folder, rank);
    vec![
        vec![],
        vec![random(1)],
        vec![random(16), recorded("a1_peft", -0.5)],
        vec![random(128), random(3)],
        vec![recorded("f1_kohya_te1", 1.0), recorded("f4_kohya_te3_t5", 0.6)],
        vec![recorded("g2_lokr_kohya", 0.9)],
        vec![recorded("g5_dora_kohya_out", 0.8), recorded("g6_dora_kohya_in", 0.3)],
        vec![recorded("g1_loha", 1.2), recorded("a1_peft", 0.0)],
    ]
}

/// The images of several specs, alone or together.
fn images(engine: &mut FluxEngine, specs: &[GenerateSpec], is_batched: bool) -> Vec<RgbImage> {
    let mut images = Vec::new();
    for specs in specs.chunks(if is_batched { specs.len() } else { 1 }) {
        let slots: Vec<_> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
        for _ in 0..specs[0].steps() {
            engine.step(&slots).expect("steps");
        }
        images.extend(slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")));
    }
    images
}

#[test]
fn eight_images_with_eight_sets_of_adapters_have_the_same_bits_batched_and_unbatched() {
    let (folder, case) = (tempfile::tempdir().expect("a folder"), &cases()[0]);
    let specs: Vec<_> = sets(&folder).into_iter().map(|loras| case.spec_with(loras, 3)).collect();
    let mut all = Vec::new();
    let (expanded, stored) = (WeightStorage::Expanded, WeightStorage::AsStored);
    // The last reads every block for each step.
    for (weights, offload) in [(expanded, Offload::Nothing), (stored, Offload::Nothing), (expanded, Offload::Blocks)] {
        let memory_budget = (offload == Offload::Blocks).then_some(ByteSize(1 << 20));
        let settings = EngineSettings { offload, weights, memory_budget, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(&diffusers_folders(), settings).expect("loads");
        all.extend([images(&mut engine, &specs, false), images(&mut engine, &specs, true)]);
    }
    for others in &all[1..] {
        for (index, (image, other)) in all[0].iter().zip(others).enumerate() {
            assert!(image.pixels() == other.pixels(), "image {index}");
        }
    }
    for (index, image) in all[0].iter().enumerate() {
        let same = all[0][..index].iter().filter(|other| other.pixels() == image.pixels()).count();
        assert_eq!(same, 0, "image {index} has adapters of its own");
    }
}

#[test]
fn a_negative_prompt_has_the_adapters_of_its_image() {
    let (folder, case) = (tempfile::tempdir().expect("a folder"), &cases()[0]);
    let mut engine = engine(&diffusers_folders());
    let lora = random_lora(&folder, 4);
    let spec = |negative: &str, loras: Vec<AdapterUse>| {
        let params = GenerateParams {
            prompt: case.prompt.clone(),
            negative_prompt: Some(negative.to_owned()),
            true_cfg_scale: Some(2.0),
            width: Some(64),
            height: Some(64),
            steps: Some(1),
            loras,
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card()).expect("valid")
    };
    // With the same prompt twice both passes are the same, whatever the adapters: then the difference is 0.
    let slot = engine.admit(&spec(&case.prompt, vec![lora.clone()])).expect("admits");
    let sequences: Vec<_> = engine.images[&slot].sequences().collect();
    let velocities = engine.model.transformer.velocities(&sequences).expect("predicts");
    let numbers = |tensor: &Tensor| tensor.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers");
    assert_eq!(numbers(&velocities[0]), numbers(&velocities[1]));
    let alone = engine.admit(&spec(&case.prompt, Vec::new())).expect("admits");
    let sequences: Vec<_> = engine.images[&alone].sequences().collect();
    let plain = engine.model.transformer.velocities(&sequences).expect("predicts");
    assert_ne!(numbers(&velocities[1]), numbers(&plain[1]));
}

#[test]
fn an_image_that_is_decoded_holds_no_adapter() {
    let case = &cases()[0];
    let mut engine = engine(&diffusers_folders());
    let lora = used(&reference("lora/adapters/a1_peft.safetensors"), 1.0);
    let slot = engine.admit(&case.spec_with(vec![lora], 1)).expect("admits");
    for _ in 0..case.num_inference_steps {
        assert!(!engine.images[&slot].adapters.is_empty() && !engine.adapters.drop_unused());
        engine.step(&[slot]).expect("steps");
    }
    engine.decode_part(slot).expect("decodes");
    assert!(engine.images[&slot].adapters.is_empty() && engine.adapters.drop_unused());
    engine.finish(slot).expect("finishes");
}

#[test]
fn strength_0_changes_no_bit() {
    let case = &cases()[0];
    let mut engine = engine(&diffusers_folders());
    let file = reference("lora/adapters/g5_dora_kohya_out.safetensors");
    let specs = [Vec::new(), vec![used(&file, 0.0)]].map(|loras| case.spec_with(loras, 3));
    let images = images(&mut engine, &specs, false);
    assert!(images[0].pixels() == images[1].pixels());
}

#[test]
fn an_adapter_changes_the_embedding_that_it_is_of_and_the_cache_knows() {
    let case = &cases()[0];
    let mut engine = engine(&diffusers_folders());
    let text = used(&reference("lora/adapters/f3_kohya_te1_only.safetensors"), 1.0);
    let image = used(&reference("lora/adapters/a1_peft.safetensors"), 1.0);
    let mut pooled = |loras: Vec<AdapterUse>| {
        let slot = engine.admit(&case.spec_with(loras, 1)).expect("admits");
        let adapters = engine.images[&slot].adapters.clone();
        engine.release(slot);
        let embedding = engine.model.embed(&case.prompt, &case.prompt, 64, &adapters).expect("embeds");
        embedding.pooled.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers")
    };
    let plain = pooled(Vec::new());
    assert_eq!(pooled(vec![image.clone()]), plain, "it changes no text encoder");
    let changed = pooled(vec![text.clone()]);
    assert_ne!(changed, plain);
    assert_ne!(pooled(vec![AdapterUse { scale: 0.5, ..text.clone() }]), changed);
    assert_eq!(pooled(vec![text, image]), changed);
    assert_eq!(pooled(Vec::new()), plain);
}

#[test]
fn an_adapter_that_cannot_be_used_fails_its_image_alone() {
    let case = &cases()[0];
    let mut engine = engine(&diffusers_folders());
    let good = engine.admit(&case.spec_with(Vec::new(), 1)).expect("admits");
    let bad = used(&reference("lora/adapters/j10_sdxl.safetensors"), 1.0);
    let refused = engine.admit(&case.spec_with(vec![bad], 1));
    assert!(
        matches!(&refused, Err(EngineError::Request(reason)) if reason.contains("Stable Diffusion")),
        "{refused:?}"
    );
    engine.step(&[good]).expect("steps");
}

/// Files of quantized weights take adapters, too.
#[test]
fn an_adapter_acts_on_weights_as_they_are_stored() {
    let case = &cases()[0];
    let file: Arc<Path> = reference("lora/adapters/a1_peft.safetensors").into();
    let latents = |weights, is_changed: bool| {
        let settings = EngineSettings { weights, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(&single_files(), settings).expect("loads");
        let loras = if is_changed { vec![used(&file, 1.0)] } else { Vec::new() };
        let slot = engine.admit(&case.spec_with(loras, 1)).expect("admits");
        engine.step(&[slot]).expect("steps");
        engine.images[&slot].latents.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers")
    };
    let changed = latents(WeightStorage::AsStored, true);
    assert_eq!(changed, latents(WeightStorage::Expanded, true));
    assert_ne!(changed, latents(WeightStorage::AsStored, false));
}
