//! Adapters beside images that steer a run: an engine that adds an adapter to each layer's product, against one on the same weights
//! into which the adapter was merged in float64. The adapter changes every linear layer of the transformer, and so the layers that
//! read reference images, masks and control images, too.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use tempfile::TempDir;

use super::adapters::used;
use super::family::{Cases, Checkpoint, card_of};
use super::support::{
    IMAGE, LATENTS, Tensors, admit_encoded, assert_close, decoded, diffusers_folders, engine, reference,
};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::Conditioning;
use crate::domain::engine::StepEngine as _;
use crate::domain::model::{ModelCard, ModelFiles};
use crate::domain::spec::GenerateSpec;
use crate::engine::FluxEngine;
use crate::engine::noise::standard_normal;

/// Rank of the adapter.
const RANK: usize = 4;

/// What the adapter is multiplied by.
const SCALE: f64 = 0.75;

/// Size of the numbers of the adapter's first factor.
const DOWN: f64 = 0.1;

/// Size of the numbers of the second factor, for weights of size 1: what is added is about 0.4 times as large as what was there.
const UP: f64 = 2.5;

/// By how much the adapter moves some value of every image at least: five hundred times what two right ways may differ by.
const MOVED_MIN: f32 = 1e-2;

/// A checkpoint in the folders of diffusers with an adapter merged into its transformer, and that adapter's file.
pub(super) struct Merged {
    folder: TempDir,
    lora: PathBuf,
}

impl Merged {
    /// From the folders of a transformer and of an autoencoder in the reference.
    fn of(transformer: &str, vae: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str| folder.path().join(name);
        for part in ["model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            symlink(reference("FLUX.1-dev").join(part), place(part)).expect("linked");
        }
        symlink(reference(vae), place("vae")).expect("linked");
        for made in ["transformer", "adapter"] {
            std::fs::create_dir(place(made)).expect("made");
        }
        std::fs::copy(reference(transformer).join("config.json"), place("transformer/config.json")).expect("copied");
        let (mut weights, mut adapter) = (weights_in(&reference(transformer)), Tensors::new());
        for (number, module) in linear_layers(&weights).into_iter().enumerate() {
            let name = format!("{module}.weight");
            let [down, up, merged] = adapted(&weights[&name], 2 * number as u64).expect("matrices");
            adapter.insert(format!("transformer.{module}.lora_A.weight"), down);
            adapter.insert(format!("transformer.{module}.lora_B.weight"), up);
            weights.insert(name, merged);
        }
        let lora = place("adapter/lora.safetensors");
        candle_core::safetensors::save(&adapter, &lora).expect("written");
        let file = place("transformer/diffusion_pytorch_model.safetensors");
        candle_core::safetensors::save(&weights, file).expect("written");
        Self { folder, lora }
    }

    /// FLUX.1-dev.
    pub(super) fn of_dev() -> Self {
        Self::of("FLUX.1-dev/transformer", "FLUX.1-dev/vae")
    }

    /// A model of the family, by its folder there.
    fn of_family(path: &str) -> Self {
        Self::of(&format!("family/{path}/transformer"), "family/vae")
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::Directory(self.folder.path().to_owned())
    }

    /// The file of the adapter.
    pub(super) fn lora(&self) -> &Path {
        &self.lora
    }
}

/// All tensors in a folder's weight files.
fn weights_in(folder: &Path) -> Tensors {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let weights = files.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    weights.flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).expect("a weight file")).collect()
}

/// The names of all linear layers, in their order.
fn linear_layers(weights: &Tensors) -> Vec<String> {
    let matrices = weights.iter().filter(|(_, tensor)| tensor.rank() == 2);
    let mut modules: Vec<String> =
        matrices.filter_map(|(name, _)| name.strip_suffix(".weight").map(ToOwned::to_owned)).collect();
    modules.sort();
    modules
}

/// Both factors of a layer's adapter, and the layer's weights `[outputs, inputs]` with it.
fn adapted(weight: &Tensor, seed: u64) -> Result<[Tensor; 3]> {
    let (outputs, inputs) = weight.dims2()?;
    let weight = weight.to_dtype(DType::F64)?;
    let size = weight.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
    let down = factor(seed, (RANK, inputs), DOWN)?;
    let up = factor(seed + 1, (outputs, RANK), UP * size)?;
    let product = up.to_dtype(DType::F64)?.matmul(&down.to_dtype(DType::F64)?)?;
    let merged = (weight + (product * SCALE)?)?.to_dtype(DType::F32)?;
    Ok([down, up, merged])
}

/// A matrix of normal numbers, the same in every run.
fn factor(seed: u64, shape: (usize, usize), size: f64) -> Result<Tensor> {
    let count = shape.0 * shape.1;
    let mut numbers = standard_normal(seed, 0, count.next_multiple_of(16));
    numbers.truncate(count);
    Tensor::from_vec(numbers, shape, &Device::Cpu)? * size
}

/// The latents behind each step of a request, and the image's pixels from 0 to 1.
struct Run {
    latents: Vec<Tensor>,
    image: Tensor,
}

impl Run {
    fn of(engine: &mut FluxEngine, spec: &GenerateSpec) -> Self {
        let slot = admit_encoded(engine, spec);
        let mut latents = Vec::new();
        while !engine.images[&slot].is_done() {
            engine.step(&[slot]).expect("steps");
            latents.push(engine.images[&slot].latents.clone());
        }
        let image = decoded(engine, slot);
        engine.release(slot);
        Self { latents, image }
    }
}

/// Compares a request with the adapter of `lora` on the first checkpoint with the request alone on the second one, which has it in
/// its weights; and that the adapter does something. `spec` has the request with adapters.
pub(super) fn check(
    name: &str,
    [plain, merged]: &[ModelFiles; 2],
    lora: &Path,
    spec: impl Fn(&[AdapterUse]) -> GenerateSpec,
) {
    let mut plain = engine(plain);
    let beside = Run::of(&mut plain, &spec(&[used(lora, SCALE)]));
    let without = Run::of(&mut plain, &spec(&[used(lora, 0.0)]));
    let expected = Run::of(&mut engine(merged), &spec(&[]));
    assert_eq!(beside.latents.len(), expected.latents.len(), "{name}");
    for (step, (found, expected)) in beside.latents.iter().zip(&expected.latents).enumerate() {
        assert_close(&format!("{name} latents {step}"), found, expected, LATENTS);
    }
    assert_close(&format!("{name} image"), &beside.image, &expected.image, IMAGE);
    let moved = (&beside.image - &without.image).and_then(|moved| moved.abs()?.max_all()?.to_scalar::<f32>());
    let moved = moved.expect("images of one size");
    assert!(moved > MOVED_MIN, "{name}: the adapter moves the image by {moved:e} only");
}

/// [`check`] of a recorded request. The checkpoint is given without and with the adapter.
fn check_case(folder: &str, name: &str, plain: ModelFiles, merged: &Merged, card: &ModelCard) {
    let cases = Cases::of(folder);
    let case = cases.cases.iter().find(|case| case.name == name).expect("a recorded case");
    let recorded = cases.tensors(folder, case);
    let spec = |loras: &[AdapterUse]| case.specs_with(&recorded, card, loras).remove(0);
    check(&format!("{folder} {name}"), &[plain, merged.files()], merged.lora(), spec);
}

fn check_in_family(path: &str, checkpoint: &Checkpoint, folder: &str, name: &str) {
    check_case(folder, name, checkpoint.files(), &Merged::of_family(path), &checkpoint.card());
}

#[test]
fn an_adapter_acts_beside_a_reference_as_if_it_were_merged() {
    check_in_family("kontext/FLUX.1-Kontext-dev", &Checkpoint::kontext(), "kontext", "k2_other_size");
}

#[test]
fn an_adapter_acts_on_a_filled_image_as_if_it_were_merged() {
    check_in_family("fill/FLUX.1-Fill-dev", &Checkpoint::fill(), "fill", "f2_unaligned_mask");
}

#[test]
fn an_adapter_acts_beside_a_control_image_as_if_it_were_merged() {
    check_in_family("control/FLUX.1-Canny-dev", &Checkpoint::canny(), "control", "canny_1");
    check_in_family("control/FLUX.1-Depth-dev", &Checkpoint::depth(), "control", "depth_1");
}

#[test]
fn an_adapter_acts_on_an_input_image_with_and_without_a_mask_as_if_it_were_merged() {
    let (merged, card) = (Merged::of_dev(), card_of(Conditioning::Prompt));
    for (folder, name) in [("img2img", "i1_06"), ("inpaint", "p1_rect_085")] {
        check_case(folder, name, diffusers_folders(), &merged, &card);
    }
}
