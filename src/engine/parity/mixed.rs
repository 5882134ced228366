//! Images that are steered in different ways, in one step: each has the bits that it has alone.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use tempfile::TempDir;

use super::adapters::{random_lora_of, used};
use super::family::{Checkpoint, card_of, completed};
use super::support::{diffusers_folders, engine};
use crate::domain::adapter::AdapterUse;
use crate::domain::byte_size::ByteSize;
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::conversion::{ConvertedComponent, WeightFormat};
use crate::domain::device::{DeviceChoice, EngineSettings, Offload};
use crate::domain::engine::{EngineError, Slot, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelFiles;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::ComponentWeights;
use crate::engine::{Conversion, FluxEngine, conditioning_of};

/// An image of a role. Neighboring seeds are other images.
pub(super) fn given(role: ImageRole, (width, height): (u32, u32), seed: u64) -> GivenImage {
    let pixels = (0..u64::from(width * height * 3)).map(|at| (at * (2 * seed + 7) % 253) as u8).collect();
    let image = RgbImage::new(width, height, pixels).expect("three bytes a pixel");
    GivenImage::new("images[0]", role, Arc::new(image))
}

/// A mask that is white from the left to the middle, and gray, but repainted, below.
pub(super) fn mask(size: (u32, u32)) -> GivenImage {
    let (width, height) = size;
    let gray = |x, y| if x < width / 2 || y > height - 20 { 140 } else { 90 };
    let pixel = |at: u32| [gray(at % width, at / width); 3];
    let image =
        RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).expect("three bytes a pixel");
    GivenImage::new("images[1]", ImageRole::Mask, Arc::new(image))
}

/// A request: its seed, its size, its images.
pub(super) fn params(seed: u64, (width, height): (u32, u32), images: Vec<GivenImage>) -> GenerateParams {
    GenerateParams {
        prompt: format!("a red circle, number {seed}"),
        width: Some(width),
        height: Some(height),
        steps: Some(3),
        guidance: Some(2.5),
        seed,
        sequence_length: Some(16 + seed as usize),
        images,
        ..GenerateParams::default()
    }
}

fn specs(params: Vec<GenerateParams>, conditioning: Conditioning) -> Vec<GenerateSpec> {
    let spec = |params| GenerateSpec::new(params, &card_of(conditioning)).expect("a valid request");
    params.into_iter().map(spec).collect()
}

/// The images of specs in one batch. All of their own images are encoded by parts before, or in the first step.
fn together(engine: &mut FluxEngine, specs: &[GenerateSpec], by_parts: bool) -> Vec<RgbImage> {
    let slots: Vec<Slot> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for slot in slots.iter().filter(|_| by_parts) {
        while !engine.encode_part(*slot).expect("encodes") {}
        assert!(engine.images[slot].is_encoded() && engine.encode_part(*slot).expect("nothing to do"));
    }
    loop {
        let is_left = |slot: &Slot| !engine.images[slot].is_done();
        let left: Vec<Slot> = slots.iter().copied().filter(is_left).collect();
        if left.is_empty() {
            break;
        }
        engine.step(&left).expect("steps");
    }
    slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")).collect()
}

/// Compares each image alone with all of them together, however weights are kept, in full precision and in bf16.
pub(super) fn check(files: &ModelFiles, specs: &[GenerateSpec]) {
    for precision in [Precision::Full, Precision::Bf16] {
        check_in(precision, files, specs);
    }
}

fn check_in(precision: Precision, files: &ModelFiles, specs: &[GenerateSpec]) {
    let (expanded, stored) = (WeightStorage::Expanded, WeightStorage::AsStored);
    let mut alone: Vec<RgbImage> = Vec::new();
    for (weights, offload) in [(expanded, Offload::Nothing), (stored, Offload::Nothing), (expanded, Offload::Blocks)] {
        let memory_budget = (offload == Offload::Blocks).then_some(ByteSize(1 << 20));
        let settings = EngineSettings { offload, precision, weights, memory_budget, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(files, settings).expect("loads");
        if alone.is_empty() {
            alone = specs.iter().flat_map(|spec| together(&mut engine, std::slice::from_ref(spec), true)).collect();
        }
        let batched = together(&mut engine, specs, false);
        for (index, (one, other)) in alone.iter().zip(&batched).enumerate() {
            assert!(one.pixels() == other.pixels(), "image {index}, {precision}, {weights}, {offload:?}");
        }
    }
    for (index, image) in alone.iter().enumerate() {
        let same = alone[..index].iter().filter(|other| other.pixels() == image.pixels()).count();
        assert_eq!(same, 0, "image {index} has images of its own");
    }
}

/// A LoRA of a checkpoint's own widths.
fn lora(checkpoint: &Checkpoint, folder: &TempDir) -> Vec<AdapterUse> {
    vec![random_lora_of(&checkpoint.single_path().expect("it has one file"), folder, 3)]
}

/// The requests that FLUX.1-Kontext takes, one of each kind.
fn kinds(loras: Vec<AdapterUse>) -> Vec<GenerateParams> {
    let (square, wide) = ((64, 64), (96, 48));
    let reference = |size, seed| given(ImageRole::Reference, size, seed);
    let input = |seed| given(ImageRole::Input, square, seed);
    let two = vec![reference(wide, 5), reference((32, 80), 6)];
    let mut all = vec![
        params(1, square, Vec::new()),
        params(2, square, vec![input(2)]),
        params(3, square, vec![input(3), mask(square)]),
        params(4, wide, vec![reference(square, 4)]),
        params(5, square, two),
        params(6, square, vec![reference(wide, 7), input(6), mask(square)]),
        params(7, square, vec![reference(square, 8)]),
        params(8, square, vec![reference(square, 9)]),
    ];
    (all[1].strength, all[2].strength, all[5].strength) = (Some(0.6), Some(1.0), Some(0.9));
    (all[6].negative_prompt, all[6].true_cfg_scale) = (Some("blurry".to_owned()), Some(2.0));
    all[7].loras = loras;
    all
}

#[test]
fn eight_kinds_of_images_have_the_same_bits_together_and_alone() {
    let (checkpoint, folder) = (Checkpoint::kontext(), tempfile::tempdir().expect("a folder"));
    check(&checkpoint.files(), &specs(kinds(lora(&checkpoint, &folder)), Conditioning::References));
}

#[test]
fn filled_images_have_the_same_bits_together_and_alone() {
    let (checkpoint, folder) = (Checkpoint::fill(), tempfile::tempdir().expect("a folder"));
    let of = |seed, size| params(seed, size, vec![given(ImageRole::Input, size, seed), mask(size)]);
    let mut all = vec![of(1, (64, 64)), of(2, (96, 48)), of(3, (64, 64)), of(4, (32, 64))];
    (all[1].strength, all[3].strength) = (Some(0.5), Some(0.7));
    all[2].loras = lora(&checkpoint, &folder);
    check(&checkpoint.files(), &specs(all, Conditioning::Fill));
}

#[test]
fn controlled_images_have_the_same_bits_together_and_alone() {
    let (checkpoint, folder) = (Checkpoint::canny(), tempfile::tempdir().expect("a folder"));
    let of = |seed, size| params(seed, size, vec![given(ImageRole::Control, size, seed)]);
    let mut all = vec![of(1, (64, 64)), of(2, (96, 48)), of(3, (64, 64)), of(4, (32, 64))];
    all[1].negative_prompt = Some("blurry".to_owned());
    all[2].loras = lora(&checkpoint, &folder);
    check(&checkpoint.files(), &specs(all, Conditioning::Control));
}

/// An adapter of FLUX.1-dev has no weights for what is joined to the latents: it changes nothing of that.
#[test]
fn an_adapter_without_joined_inputs_is_one_with_zeros_for_them() {
    let (checkpoint, folder) = (Checkpoint::canny(), tempfile::tempdir().expect("a folder"));
    let made = candle_core::safetensors::load(&*lora(&checkpoint, &folder)[0].file, &Device::Cpu).expect("a LoRA");
    let name = "diffusion_model.img_in.lora_A.weight";
    let own = made[name].narrow(1, 0, 64).and_then(|own| own.contiguous()).expect("columns");
    let mut engine = engine(&checkpoint.files());
    let mut image = |file: &str, down: Tensor| {
        let mut tensors = made.clone();
        tensors.insert(name.to_owned(), down);
        let file = folder.path().join(file);
        candle_core::safetensors::save(&tensors, &file).expect("written");
        let size = (64, 64);
        let mut params = params(1, size, vec![given(ImageRole::Control, size, 1)]);
        params.loras = vec![used(&file, 0.7)];
        together(&mut engine, &specs(vec![params], Conditioning::Control), false).remove(0)
    };
    let narrow = image("narrow.safetensors", own.clone());
    let zeros = image("zeros.safetensors", own.pad_with_zeros(1, 0, 64).expect("zeros"));
    let whole = image("whole.safetensors", made[name].clone());
    assert!(narrow.pixels() == zeros.pixels() && narrow.pixels() != whole.pixels());
}

/// What the transformer of a quantized file reads is known by the shapes in its header.
#[test]
fn images_of_quantized_files_are_steered_as_those_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    for (checkpoint, format) in [
        (Checkpoint::fill(), WeightFormat::GgufQ8_0),
        (Checkpoint::fill(), WeightFormat::Fp8),
        (Checkpoint::canny(), WeightFormat::GgufQ8_0),
    ] {
        let path = folder.path().join(format!("made.{}", format.ending()));
        let conversion = Conversion::new(&checkpoint.files(), ConvertedComponent::Transformer, format);
        let file = std::fs::File::create(&path).expect("created");
        conversion.expect("planned").write(&file, &()).expect("written");
        let alone = ModelFiles::Directory(path.clone());
        assert_eq!(conditioning_of(&alone).expect("known"), checkpoint.conditioning, "{format:?}");
        let of = |seed, size| match checkpoint.conditioning {
            Conditioning::Fill => params(seed, size, vec![given(ImageRole::Input, size, seed), mask(size)]),
            _ => params(seed, size, vec![given(ImageRole::Control, size, seed)]),
        };
        check(&completed(path), &specs(vec![of(1, (64, 64)), of(2, (96, 48))], checkpoint.conditioning));
    }
}

/// A preview of an image that is repainted shows what stays of it.
#[test]
fn what_stays_of_an_image_stays_in_its_preview() {
    let mut engine = engine(&diffusers_folders());
    let images = vec![given(ImageRole::Input, (64, 64), 1), mask((64, 64))];
    let spec = &specs(vec![params(1, (64, 64), images)], Conditioning::Prompt)[0];
    let slot = engine.admit(spec).expect("admits");
    assert_eq!(engine.preview(slot), Ok(None), "before the first step");
    engine.step(&[slot]).expect("steps");
    assert!(engine.preview(slot).expect("previews").is_some());
    let numbers = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("numbers");
    let expected = numbers(&engine.images[&slot].expected().expect("expects").expect("after a step"));
    engine.step(&[slot]).expect("steps");
    let later = numbers(&engine.images[&slot].expected().expect("expects").expect("after a step"));
    // The right half of the first row of tokens stays.
    assert_eq!(expected[3], later[3]);
    assert_ne!(expected[0], later[0]);
}

fn refused(engine: &mut FluxEngine, params: GenerateParams, conditioning: Conditioning) -> String {
    let outcome = engine.admit(&specs(vec![params], conditioning)[0]);
    let Err(EngineError::Request(reason)) = outcome else { panic!("{outcome:?}") };
    assert!(engine.images.is_empty());
    reason
}

/// Cards say the same before. A checkpoint may be another than its card says.
#[test]
fn a_checkpoint_refuses_what_it_does_not_read() {
    let size = (64, 64);
    let plain = || params(1, size, Vec::new());
    let with = |role| params(1, size, vec![given(role, size, 1)]);
    let filled = || params(1, size, vec![given(ImageRole::Input, size, 1), mask(size)]);
    let (prompt, references) = (Conditioning::Prompt, Conditioning::References);
    let (fill, control) = (Conditioning::Fill, Conditioning::Control);
    let mut of = engine(&Checkpoint::fill().files());
    for (params, card) in [(plain(), prompt), (with(ImageRole::Input), prompt), (with(ImageRole::Control), control)] {
        let reason = refused(&mut of, params, card);
        assert!(reason.contains("needs an input image and a mask"), "{reason}");
    }
    let mut both = filled();
    both.images.push(given(ImageRole::Reference, size, 2));
    let reason = refused(&mut of, both, references);
    assert!(reason.contains("and no other images"), "{reason}");
    let mut of = engine(&Checkpoint::depth().files());
    for (params, card) in [(plain(), prompt), (filled(), fill), (with(ImageRole::Reference), references)] {
        let reason = refused(&mut of, params, card);
        assert!(reason.contains("a request needs exactly one"), "{reason}");
    }
    let mut of = engine(&diffusers_folders());
    let reason = refused(&mut of, with(ImageRole::Control), control);
    assert!(reason.contains("reads no control image"), "{reason}");
}

#[test]
fn a_large_reference_image_is_refused_by_name() {
    let mut engine = engine(&Checkpoint::kontext().files());
    let with = |size| params(1, (64, 64), vec![given(ImageRole::Reference, size, 1)]);
    engine.pixels.input = 64 * 64;
    let reason = refused(&mut engine, with((96, 64)), Conditioning::References);
    assert!(reason.starts_with("96x64 pixels of a reference image do not fit"), "{reason}");
    engine.pixels.input = usize::MAX;
    engine.limits.step_tokens_max = 30;
    let reason = refused(&mut engine, with((96, 64)), Conditioning::References);
    assert!(reason.contains("57 tokens per step with its reference images, and this device holds 30"), "{reason}");
}

#[test]
fn an_image_whose_encoding_is_given_up_leaves_nothing_behind() {
    let mut engine = engine(&Checkpoint::kontext().files());
    let images = vec![given(ImageRole::Reference, (64, 64), 1)];
    let spec = &specs(vec![params(1, (64, 64), images)], Conditioning::References)[0];
    let slot = engine.admit(spec).expect("admits");
    assert!(!engine.encode_part(slot).expect("encodes") && !engine.images[&slot].is_encoded());
    engine.release(slot);
    assert!(matches!(engine.encode_part(slot), Err(EngineError::Fatal(_))) && engine.images.is_empty());
}

#[test]
fn what_a_transformer_reads_is_known_by_its_channels() {
    for (checkpoint, expected) in [
        (Checkpoint::kontext(), Conditioning::Prompt),
        (Checkpoint::fill(), Conditioning::Fill),
        (Checkpoint::canny(), Conditioning::Control),
        (Checkpoint::depth(), Conditioning::Control),
    ] {
        for files in std::iter::once(checkpoint.files()).chain(checkpoint.single_file()) {
            assert_eq!(conditioning_of(&files).expect("known"), expected, "{files:?}");
            let weights = ComponentWeights::open(&files, ConvertedComponent::Transformer).expect("complete");
            let shape =
                |name: &str| weights.tensors.iter().find(|tensor| tensor.name() == name).expect("there").shape();
            let inputs = 64 + expected.joined_channels(64);
            assert_eq!(
                (shape("img_in.weight"), shape("final_layer.linear.weight")),
                (&[32, inputs][..], &[64, 32][..])
            );
        }
    }
}

#[test]
fn channels_of_no_known_model_are_refused_by_name() {
    let checkpoint = Checkpoint::fill();
    let folder = checkpoint.folder().join("transformer");
    let config = std::fs::read_to_string(folder.join("config.json")).expect("readable");
    let weights = folder.join("diffusion_pytorch_model.safetensors").canonicalize().expect("there");
    std::fs::remove_file(&folder).expect("it is a link");
    std::fs::create_dir(&folder).expect("made");
    std::os::unix::fs::symlink(weights, folder.join("diffusion_pytorch_model.safetensors")).expect("linked");
    let with = |config: String| {
        std::fs::write(folder.join("config.json"), config).expect("written");
        conditioning_of(&checkpoint.files())
    };
    let error = with(config.replace("384", "196")).expect_err("of no known model").to_string();
    assert!(error.contains("transformer/config.json: in_channels must be") && error.contains("Flex.2"), "{error}");
    // Without its width of outputs, which the weights tell.
    assert_eq!(
        with(config.replace("\"out_channels\": 64", "\"out_channels\": null")).expect("known"),
        Conditioning::Fill
    );
    engine(&checkpoint.files());
}
