//! The recorded files, and engines on the reference checkpoint in both layouts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::catalog::card_or_flux_dev;
use crate::domain::device::DeviceChoice;
use crate::domain::engine::{Slot, StepEngine as _};
use crate::domain::ids::ModelId;
use crate::domain::model::{EmbeddedFile, ModelCard, ModelFiles};
use crate::domain::spec::GenerateSpec;
use crate::engine::FluxEngine;
use crate::engine::adapted::AdapterSet;
use crate::engine::models::flux1::Sequence;

/// Largest absolute differences of a correct implementation; the smallest mistake that was tried moves the image by twice
/// as much.
pub(super) const IMAGE: f32 = 2e-5;
pub(super) const LATENTS: f32 = 5e-5;
/// Of what a model predicts from a control image that this engine has encoded: the rounding of the encoder, a few 1e-6, comes out
/// amplified. From the recorded input the prediction is held to [`LATENTS`].
pub(super) const THROUGH_ENCODER: f32 = 2e-4;
pub(super) const T5: f32 = 5e-5;
pub(super) const CLIP: f32 = 2e-5;
pub(super) const MOMENTS: f32 = 1e-4;

pub(super) type Tensors = HashMap<String, Tensor>;

pub(super) fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

pub(super) fn tensors(path: &str) -> Tensors {
    candle_core::safetensors::load(reference(path), &Device::Cpu).expect("a reference file")
}

pub(super) fn json<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let text = std::fs::read_to_string(reference(path)).expect("a reference file");
    serde_json::from_str(&text).expect("the form this test expects")
}

pub(super) fn diffusers_folders() -> ModelFiles {
    ModelFiles::Directory(reference("FLUX.1-dev"))
}

/// The same checkpoint with the single files in place of the diffusers weights.
pub(super) fn single_files() -> ModelFiles {
    fn collect(root: &Path, folder: &Path, files: &mut Vec<EmbeddedFile>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(root, &path, files);
                continue;
            }
            let name = path.strip_prefix(root).expect("inside").to_string_lossy().into_owned();
            if !name.contains("diffusion_pytorch_model") {
                let bytes = std::fs::read(&path).expect("readable");
                files.push(EmbeddedFile { path: name.leak(), bytes: bytes.leak() });
            }
        }
    }
    let root = reference("FLUX.1-dev");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    ModelFiles::Embedded(files.leak())
}

pub(super) fn engine(files: &ModelFiles) -> FluxEngine {
    FluxEngine::load(files, DeviceChoice::Cpu).expect("the reference checkpoint loads")
}

/// FLUX.1-dev's card, without the limits that the recorded cases exceed.
pub(super) fn card() -> ModelCard {
    let mut card = card_or_flux_dev(&ModelId::new("reference"));
    card.prompt_chars_max = 100_000;
    card.limits.width_min = 16;
    card.limits.height_min = 16;
    card.input_images_max = 1;
    card
}

/// No adapters.
pub(super) fn none() -> AdapterSet {
    AdapterSet::default()
}

/// Admits a request, and encodes its images.
/// What a model predicts in the first step from exactly the input that diffusers had, `[image tokens, channels]` for each image.
pub(super) fn predicted_from(engine: &FluxEngine, slots: &[Slot], inputs: &[Tensor]) -> Vec<Tensor> {
    let split = |(slot, input): (&Slot, &Tensor)| -> [Tensor; 2] {
        let width = engine.images[slot].latents.dims()[1];
        let part = |from: usize, count: usize| input.narrow(1, from, count).and_then(|part| part.contiguous());
        [part(0, width), part(width, input.dims()[1] - width)].map(|part| part.expect("channels"))
    };
    let parts: Vec<[Tensor; 2]> = slots.iter().zip(inputs).map(split).collect();
    let sequences: Vec<Sequence> = slots
        .iter()
        .zip(&parts)
        .flat_map(|(slot, [latents, joined])| {
            engine.images[slot].sequences().map(move |own| Sequence { latents, joined: Some(joined), ..own })
        })
        .collect();
    engine.model.transformer.velocities(&sequences).expect("predicts")
}

pub(super) fn admit_encoded(engine: &mut FluxEngine, spec: &GenerateSpec) -> Slot {
    let slot = engine.admit(spec).expect("admits");
    while !engine.encode_part(slot).expect("encodes") {}
    slot
}

pub(super) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let expected = expected.reshape(found.dims()).unwrap_or_else(|_| panic!("{what}: shape {:?}", found.dims()));
    let largest: f32 = (found - expected)
        .and_then(|difference| difference.abs()?.max_all()?.to_scalar())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(largest <= tolerance, "{what}: off by {largest:e}, more than {tolerance:e}");
}
