//! Quantized files: the images that diffusers makes of the dequantized weights, and batch invariance.

use candle_core::Tensor;
use serde::Deserialize;

use super::support::{
    CLIP, IMAGE, LATENTS, T5, assert_close, card, diffusers_folders, engine, json, none, reference, tensors,
};
use crate::domain::device::{DeviceChoice, EngineSettings};
use crate::domain::engine::StepEngine as _;
use crate::domain::image::RgbImage;
use crate::domain::model::{CompletedFiles, ModelFiles};
use crate::domain::precision::Precision;
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
    args: Arguments,
    /// The file of its tensors.
    #[serde(rename = "case")]
    file: String,
}

#[derive(Deserialize)]
struct Arguments {
    prompt: String,
    height: u32,
    width: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    max_sequence_length: usize,
    seed: u64,
}

impl Arguments {
    fn spec(&self, size: (u32, u32), seed: u64) -> GenerateSpec {
        let params = GenerateParams {
            prompt: self.prompt.clone(),
            width: Some(size.0),
            height: Some(size.1),
            steps: Some(self.num_inference_steps),
            guidance: Some(self.guidance_scale),
            seed,
            sequence_length: Some(self.max_sequence_length),
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card()).expect("a valid case")
    }
}

fn case(name: &str) -> Case {
    let cases = json::<Cases>("quant/cases.json").cases;
    cases.into_iter().find(|case| case.name == name).expect("a recorded case")
}

/// A checkpoint of which `path` and the others are what a user has, and the rest is the reference's.
fn completed(path: &str, text_encoder: Option<&str>) -> ModelFiles {
    ModelFiles::Completed(Box::new(CompletedFiles {
        path: reference(path),
        text_encoders: text_encoder.map(reference).into_iter().collect(),
        vae: None,
        base: Some(diffusers_folders()),
        attachments: crate::domain::model::Attachments::default(),
    }))
}

/// A file in a folder that has everything else.
fn within(path: &str, text_encoder: Option<&str>) -> ModelFiles {
    let text_encoders = text_encoder.map(reference).into_iter().collect();
    let files = CompletedFiles {
        path: reference(path),
        text_encoders,
        vae: None,
        base: None,
        attachments: crate::domain::model::Attachments::default(),
    };
    ModelFiles::Completed(Box::new(files))
}

/// What is first of a batch.
fn first_of(tensor: &Tensor) -> Tensor {
    tensor.get(0).expect("an image of the batch")
}

fn check(name: &str, files: &ModelFiles) {
    let (case, mut engine) = (case(name), engine(files));
    let recorded = tensors(&format!("quant/{}", case.file));
    let spec = case.args.spec((case.args.width, case.args.height), case.args.seed);
    let embedding = engine.model.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length(), &none());
    let embedding = embedding.expect("embeds");
    assert_close(&format!("{name} clip"), &embedding.pooled, &recorded["clip_pooled"], CLIP);
    if let Some(expected) = recorded.get("t5_embeds") {
        assert_close(&format!("{name} t5"), &embedding.sequence, expected, T5);
    }
    let slot = engine.admit(&spec).expect("admits");
    for step in 0..spec.steps() as usize {
        engine.step(&[slot]).expect("steps");
        let expected = first_of(&recorded["latents_steps"].get(step).expect("a step"));
        assert_close(&format!("{name} latents {step}"), &engine.images[&slot].latents, &expected, LATENTS);
    }
    let image = &engine.images[&slot];
    let latents = image.grid.unpack(&image.latents).expect("unpacks");
    let pixels = engine.model.decoder.decode(&latents).expect("decodes");
    let image = ((pixels / 2.0).expect("halves") + 0.5).and_then(|image| image.clamp(0.0_f32, 1.0)).expect("image");
    assert_close(&format!("{name} image"), &image, &recorded["image"], IMAGE);
}

#[test]
fn gguf_transformers_generate_the_images_of_their_dequantized_weights() {
    for name in ["tiny-flux-mixed", "tiny-flux-Q4_K_S", "tiny-flux-Q2_K"] {
        check(name, &ModelFiles::Directory(reference(&format!("quant/FLUX.1-dev-256/{name}.gguf"))));
    }
}

#[test]
fn a_gguf_text_encoder_gives_the_embeddings_of_its_dequantized_weights() {
    let folder = "quant/FLUX.1-dev-256";
    let encoder = format!("{folder}/t5-v1_1-tiny-encoder-Q4_K_M.gguf");
    check("t5-gguf", &within(&format!("{folder}/tiny-flux-Q4_K_S.gguf"), Some(&encoder)));
}

#[test]
fn fp8_transformers_generate_the_images_of_their_dequantized_weights() {
    check("fp8-cast", &completed("quant/fp8/flux1-dev-fp8-e4m3fn.safetensors", None));
    check("fp8-scaled", &completed("quant/fp8/flux1-dev-fp8-scaled.safetensors", None));
}

#[test]
fn a_file_with_all_components_generates_the_recorded_image() {
    check("fp8-aio", &completed("quant/fp8/flux1-dev-fp8-aio.safetensors", None));
}

#[test]
fn single_files_of_text_encoders_replace_those_of_the_folder() {
    for (name, file) in [
        ("t5-fp16", "t5xxl_fp16"),
        ("t5-fp8", "t5xxl_fp8_e4m3fn"),
        ("t5-fp8-scaled", "t5xxl_fp8_e4m3fn_scaled"),
        ("t5-fp8-comfy-quant", "t5xxl_fp8_comfy_quant"),
        ("clip-l", "clip_l"),
    ] {
        check(name, &within("FLUX.1-dev", Some(&format!("quant/fp8/{file}.safetensors"))));
    }
}

#[test]
fn folders_of_bitsandbytes_generate_the_image_of_their_dequantized_weights() {
    check("nf4", &completed("quant/FLUX.1-dev-nf4", None));
}

/// Images of the same model, generated alone or together.
fn images(engine: &mut FluxEngine, specs: &[GenerateSpec], is_batched: bool) -> Vec<RgbImage> {
    let slots: Vec<_> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for _ in 0..specs[0].steps() {
        if is_batched {
            engine.step(&slots).expect("steps");
        } else {
            for slot in &slots {
                engine.step(&[*slot]).expect("steps");
            }
        }
    }
    slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")).collect()
}

fn engine_with(files: &ModelFiles, weights: WeightStorage) -> FluxEngine {
    let settings = EngineSettings { weights, ..DeviceChoice::Cpu.into() };
    FluxEngine::load(files, settings).expect("loads")
}

/// A file of each kind: GGUF's types, fp8 plain and with scales, four bits with plain and with nested scales, loose text encoders.
pub(super) fn kinds() -> Vec<ModelFiles> {
    let folder = "quant/FLUX.1-dev-256";
    let gguf = |name: &str| ModelFiles::Directory(reference(&format!("{folder}/{name}.gguf")));
    let t5 = format!("{folder}/t5-v1_1-tiny-encoder-Q4_K_M.gguf");
    vec![
        gguf("tiny-flux-mixed"),
        gguf("tiny-flux-Q2_K"),
        within(&format!("{folder}/tiny-flux-Q4_K_S.gguf"), Some(&t5)),
        completed("quant/fp8/flux1-dev-fp8-e4m3fn.safetensors", None),
        completed("quant/fp8/flux1-dev-fp8-scaled.safetensors", None),
        completed("quant/fp8/flux1-dev-fp8-aio.safetensors", None),
        completed("quant/FLUX.1-dev-nf4", None),
        within("FLUX.1-dev", Some("quant/fp8/t5xxl_fp16.safetensors")),
        within("FLUX.1-dev", Some("quant/fp8/t5xxl_fp8_comfy_quant.safetensors")),
    ]
}

#[test]
fn an_image_has_the_same_bits_batched_and_unbatched_however_its_weights_are_kept() {
    let arguments = case("tiny-flux-Q4_K_S").args;
    let specs = [((64, 64), 1), ((96, 64), 2), ((64, 64), 3)].map(|(size, seed)| arguments.spec(size, seed));
    for files in kinds() {
        let mut all = Vec::new();
        for weights in [WeightStorage::AsStored, WeightStorage::Expanded] {
            let mut engine = engine_with(&files, weights);
            all.extend([images(&mut engine, &specs, false), images(&mut engine, &specs, true)]);
        }
        for others in &all[1..] {
            for (image, other) in all[0].iter().zip(others) {
                assert!(image.pixels() == other.pixels(), "{files:?}");
            }
        }
        assert!(all[0][0].pixels() != all[0][2].pixels(), "different seeds");
    }
}

/// The latents after one step.
fn latents(engine: &mut FluxEngine, spec: &GenerateSpec) -> Vec<f32> {
    let slot = engine.admit(spec).expect("admits");
    engine.step(&[slot]).expect("steps");
    engine.images[&slot].latents.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers")
}

/// In fp8 the weights of a file in e4m3 are multiplied as they are, unless they are to be expanded and quantized again.
#[test]
fn in_fp8_a_file_in_e4m3_keeps_its_weights_and_batch_invariance_holds() {
    let arguments = case("fp8-scaled").args;
    let specs = [((64, 64), 1), ((96, 64), 2), ((64, 64), 3)].map(|(size, seed)| arguments.spec(size, seed));
    for name in ["flux1-dev-fp8-e4m3fn", "flux1-dev-fp8-scaled"] {
        let files = completed(&format!("quant/fp8/{name}.safetensors"), None);
        let in_fp8 = |weights| {
            let settings = EngineSettings { weights, precision: Precision::Fp8, ..DeviceChoice::Cpu.into() };
            FluxEngine::load(&files, settings).expect("loads")
        };
        let mut kept = in_fp8(WeightStorage::AsStored);
        let [alone, batched] = [false, true].map(|is_batched| images(&mut kept, &specs, is_batched));
        assert!(alone.iter().zip(&batched).all(|(one, other)| one.pixels() == other.pixels()), "{name}");
        let all = [WeightStorage::AsStored, WeightStorage::Auto, WeightStorage::Expanded];
        let [stored, auto, expanded] = all.map(|weights| latents(&mut in_fp8(weights), &specs[0]));
        assert!(stored == auto, "{name}: what else is kept as stored changes nothing");
        assert!(stored != expanded, "{name}: quantizing again changes the weights");
    }
}

#[test]
fn latents_have_the_same_bits_however_weights_are_kept() {
    let spec = case("tiny-flux-Q4_K_S").args.spec((64, 64), 4);
    for files in kinds() {
        let of = |weights, precision| {
            let settings = EngineSettings { precision, weights, ..DeviceChoice::Cpu.into() };
            latents(&mut FluxEngine::load(&files, settings).expect("loads"), &spec)
        };
        let in_both = [Precision::Full, Precision::Bf16].map(|precision| {
            let [stored, expanded] =
                [WeightStorage::AsStored, WeightStorage::Expanded].map(|weights| of(weights, precision));
            let are_same = stored.iter().zip(&expanded).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(are_same && !stored.is_empty(), "{files:?}, {precision}");
            stored
        });
        assert_ne!(in_both[0], in_both[1], "{files:?}: nothing was rounded");
    }
}
