//! The engine against numbers recorded from diffusers (`tests/reference/`), stage by stage, for both layouts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::loader::Checkpoint;
use super::loader::config::Configs;
use super::slots::TokenGrid;
use super::{FluxEngine, noise, ops, sampler, vae};
use crate::catalog::card_or_flux_dev;
use crate::domain::device::DeviceChoice;
use crate::domain::engine::StepEngine;
use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;
use crate::domain::model::{EmbeddedFile, ModelCard, ModelFiles};
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// Largest absolute differences that a correct implementation stays within; the smallest mistake that was tried moves
/// the image by twice as much.
const IMAGE: f32 = 2e-5;
const LATENTS: f32 = 5e-5;
const T5: f32 = 5e-5;
const CLIP: f32 = 2e-5;
const MOMENTS: f32 = 1e-4;

type Tensors = HashMap<String, Tensor>;

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

fn tensors(path: &str) -> Tensors {
    candle_core::safetensors::load(reference(path), &Device::Cpu).expect("a reference file")
}

fn json<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let text = std::fs::read_to_string(reference(path)).expect("a reference file");
    serde_json::from_str(&text).expect("the form this test expects")
}

fn diffusers_folders() -> ModelFiles {
    ModelFiles::Directory(reference("FLUX.1-dev"))
}

/// The same checkpoint with the single files in place of the diffusers weights.
fn single_files() -> ModelFiles {
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

fn engine(files: &ModelFiles) -> FluxEngine {
    FluxEngine::load(files, DeviceChoice::Cpu).expect("the reference checkpoint loads")
}

/// FLUX.1-dev's card, without the limits that the recorded cases go beyond.
fn card() -> ModelCard {
    let mut card = card_or_flux_dev(&ModelId::new("reference"));
    card.prompt_chars_max = 100_000;
    card.limits.width_min = 16;
    card.limits.height_min = 16;
    card.input_images_max = 1;
    card
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let expected = expected.reshape(found.dims()).unwrap_or_else(|_| panic!("{what}: shape {:?}", found.dims()));
    let largest: f32 = (found - expected)
        .and_then(|difference| difference.abs()?.max_all()?.to_scalar())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(largest <= tolerance, "{what}: off by {largest:e}, at most {tolerance:e} is right");
}

#[derive(Deserialize)]
struct TokenCases {
    prompts: Vec<TokenCase>,
}

#[derive(Deserialize)]
struct TokenCase {
    prompt: String,
    clip_77: Vec<u32>,
    clip_variants: Option<ClipVariants>,
    t5_512: Vec<u32>,
    t5_256: Vec<u32>,
}

/// Where transformers' two CLIP tokenizers differ, ours is the fast one, which transformers 5 alone has.
#[derive(Deserialize)]
struct ClipVariants {
    fast: Vec<u32>,
}

#[test]
fn token_ids_equal_transformers() {
    let checkpoint = Checkpoint::open(&diffusers_folders()).expect("opens");
    let tokenizers = &checkpoint.tokenizers;
    for case in json::<TokenCases>("tokens.json").prompts {
        let expected = case.clip_variants.as_ref().map_or(&case.clip_77, |variants| &variants.fast);
        let mut clip = tokenizers.clip(&case.prompt).expect("CLIP ids");
        clip.resize(77, tokenizers.clip_end());
        assert_eq!(&clip, expected, "CLIP: {:?}", case.prompt);
        for (length, expected) in [(512, &case.t5_512), (256, &case.t5_256)] {
            let mut expected = expected.clone();
            expected.resize(length, 0);
            assert_eq!(tokenizers.t5(&case.prompt, length).expect("T5 ids"), expected, "T5: {:?}", case.prompt);
        }
    }
}

#[test]
fn noise_has_the_bits_of_torch() {
    for (name, expected) in tensors("torch_noise.safetensors") {
        let Some(rest) = name.strip_prefix("f32.seed") else { continue };
        let (seed, _) = rest.split_once('.').expect("seed and shape");
        let expected = expected.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        let seed = seed.parse().expect("a seed");
        let found = noise::standard_normal(seed, 0, expected.len());
        let different = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{name}: {different} of {} numbers differ", expected.len());
        let half = expected.len() / 2;
        assert_eq!(noise::standard_normal(seed, half, half), found[half..], "skipping");
    }
}

#[derive(Deserialize)]
struct ScheduleCase {
    steps: usize,
    image_seq_len: usize,
    mu: f64,
    sigmas: Vec<f32>,
}

#[test]
fn schedules_equal_diffusers() {
    let checkpoint = Checkpoint::open(&diffusers_folders()).expect("opens");
    let scheduler = &checkpoint.configs.scheduler;
    for case in json::<Vec<ScheduleCase>>("schedules.json") {
        assert!((sampler::mu(scheduler, case.image_seq_len) - case.mu).abs() < 1e-12);
        let found = sampler::sigmas(scheduler, case.image_seq_len, case.steps);
        assert_eq!(found.len(), case.sigmas.len());
        let differences = found.iter().zip(&case.sigmas).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) <= 1e-6, "{} tokens, {} steps", case.image_seq_len, case.steps);
    }
}

#[test]
fn decoding_equals_diffusers() {
    let engine = engine(&diffusers_folders());
    let reference = tensors("vae_only.safetensors");
    for index in 0..3 {
        let latents = &reference[&format!("decode.{index}.latent")];
        let pixels = engine.decoder.decode(latents).expect("decodes");
        assert_close("decode", &pixels, &reference[&format!("decode.{index}.raw")], 2.0 * IMAGE);
    }
}

#[test]
fn encoding_equals_diffusers() {
    for files in [diffusers_folders(), single_files()] {
        let engine = engine(&files);
        let reference = tensors("vae_only.safetensors");
        for index in 0..3 {
            let expected = |kind: &str| &reference[&format!("encode.{index}.{kind}")];
            let moments = engine.encoder.encode(expected("image")).expect("encodes");
            assert_close("mean", &moments.mean, expected("mean"), MOMENTS);
            assert_close("variance", &moments.log_variance, expected("logvar"), MOMENTS);
        }
    }
}

#[test]
fn an_image_becomes_the_latents_that_diffusers_starts_from() {
    let engine = engine(&diffusers_folders());
    let cases = json::<Cases>("cases.json").cases;
    let case = cases.iter().find(|case| case.strength.is_some()).expect("there is one");
    let recorded = tensors(&case.file);
    let pixels = vae::pixels_of(&case.input_images()[0], &Device::Cpu).expect("pixels");
    assert_close("pixels", &pixels, &recorded["init_image_m11"], 0.0);
    let moments = engine.encoder.encode(&pixels).expect("encodes");
    assert_close("mean", &moments.mean, &recorded["vae_mean"], MOMENTS);
    assert_close("variance", &moments.log_variance, &recorded["vae_logvar"], MOMENTS);
    let grid = TokenGrid::of(&case.specs()[0], engine.configs.vae.latent_channels);
    let draw = |skipped| {
        let noise = noise::standard_normal(case.seed, skipped, grid.elements());
        grid.latents(noise, &Device::Cpu).expect("latents")
    };
    assert_close("the sample's noise is drawn first", &draw(0), &recorded["vae_sample_eps"], 0.0);
    assert_close("the image's second", &draw(grid.elements()), &recorded["noise"], 0.0);
    let sample = engine.encoder.sample(&moments, &draw(0)).expect("samples");
    assert_close("sample", &sample, &recorded["image_latents"], LATENTS);
}

#[test]
fn the_inner_stages_of_a_step_equal_diffusers() {
    let mut engine = engine(&diffusers_folders());
    let stages = tensors("stages.safetensors");
    // Pairs of one rotary frequency stand twice, side by side, in the recorded tables; text comes first.
    let rotary = engine.transformer.rotary(64, 4, 3).expect("tables");
    for (ours, theirs) in [(rotary.cos, "rope.0"), (rotary.sin, "rope.1")] {
        let once = stages[theirs].reshape((76, 8, 2)).and_then(|pairs| pairs.narrow(2, 0, 1)).expect("pairs");
        assert_close(theirs, &ours, &once, 1e-7);
    }
    let prompt = "a red circle on a blue background";
    let embedding = engine.embed(prompt, prompt, 64).expect("embeds");
    assert_close("clip", &embedding.pooled, &stages["case.clip_pooled"], CLIP);
    assert_close("t5", &embedding.sequence, &stages["case.t5_embeds"], T5);
    let text = engine.transformer.embed_text(&embedding.sequence).expect("text");
    assert_close("context_embedder", &text, &stages["context_embedder"], LATENTS);
    let condition = engine.transformer.embed_condition(&embedding.pooled, 3.5).expect("condition");
    let expected = (&stages["guidance_emb"] + &stages["text_emb"]).expect("sum");
    assert_close("guidance and text", &condition, &expected, LATENTS);
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt: Prompts,
    prompt_2: Option<String>,
    negative_prompt: Option<String>,
    true_cfg_scale: Option<f64>,
    height: u32,
    width: u32,
    steps: u32,
    guidance: f64,
    seed: u64,
    max_sequence_length: Option<usize>,
    #[serde(default = "one")]
    num_images_per_prompt: usize,
    strength: Option<f64>,
    file: String,
}

fn one() -> usize {
    1
}

impl Case {
    /// The image that the case starts from, if it does.
    fn input_images(&self) -> Vec<Arc<RgbImage>> {
        if self.strength.is_none() {
            return Vec::new();
        }
        let pixels = tensors(&self.file)["init_image_u8"].flatten_all().and_then(|flat| flat.to_vec1());
        let image = RgbImage::new(self.width, self.height, pixels.expect("bytes")).expect("of the case's size");
        vec![Arc::new(image)]
    }

    /// One spec per image, in the recorded order. Sizes are floored to whole tokens, as diffusers does.
    fn specs(&self) -> Vec<GenerateSpec> {
        let prompts = match &self.prompt {
            Prompts::One(prompt) => vec![prompt.clone()],
            Prompts::Many(prompts) => prompts.clone(),
        };
        let repeated = prompts.into_iter().flat_map(|prompt| vec![prompt; self.num_images_per_prompt]);
        let spec = |(index, prompt): (usize, String)| {
            let params = GenerateParams {
                prompt,
                prompt_2: self.prompt_2.clone(),
                negative_prompt: self.negative_prompt.clone(),
                true_cfg_scale: self.true_cfg_scale,
                width: Some(self.width / 16 * 16),
                height: Some(self.height / 16 * 16),
                steps: Some(self.steps),
                guidance: Some(self.guidance),
                seed: self.seed,
                sequence_length: self.max_sequence_length,
                input_images: self.input_images(),
                strength: self.strength,
            };
            GenerateSpec::new(params, &card()).expect("a valid case").at_index(index as u32)
        };
        repeated.enumerate().map(spec).collect()
    }
}

/// Row `index` of a recorded batch, without the batch dimension.
fn row_of(tensor: &Tensor, index: usize) -> Tensor {
    tensor.get(index).and_then(|row| row.contiguous()).expect("an image of the batch")
}

fn check_case(engine: &mut FluxEngine, case: &Case) {
    let recorded = tensors(&case.file);
    let specs = case.specs();
    let slots: Vec<_> = specs.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
    for (index, spec) in specs.iter().enumerate() {
        let embedding = engine.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length()).expect("embeds");
        assert_close(&format!("{} clip", case.name), &embedding.pooled, &row_of(&recorded["clip_pooled"], index), CLIP);
        assert_close(&format!("{} t5", case.name), &embedding.sequence, &row_of(&recorded["t5_embeds"], index), T5);
        let packed = &engine.images[&slots[index]].latents;
        // Noise has torch's bits; what was encoded has not.
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

fn check_velocities(
    engine: &FluxEngine,
    case: &Case,
    slots: &[crate::domain::engine::Slot],
    recorded: &Tensors,
    step: usize,
) {
    let images: Vec<_> = slots.iter().map(|slot| &engine.images[slot]).collect();
    let sequences: Vec<_> = images.iter().flat_map(|image| image.sequences()).collect();
    let mut velocities = engine.transformer.velocities(&sequences).expect("predicts").into_iter();
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

fn check_image(
    engine: &mut FluxEngine,
    case: &Case,
    slot: crate::domain::engine::Slot,
    recorded: &Tensors,
    index: usize,
) {
    let grid: TokenGrid = engine.images[&slot].grid;
    let latents = grid.unpack(&engine.images[&slot].latents).expect("unpacks");
    assert_close(&format!("{} final", case.name), &latents, &row_of(&recorded["latents_final"], index), LATENTS);
    let pixels = engine.decoder.decode(&latents).expect("decodes");
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

#[test]
fn both_layouts_hold_the_same_tensors() {
    let open = |files: &ModelFiles| Checkpoint::open(files).expect("opens");
    let (folders, singles) = (open(&diffusers_folders()), open(&single_files()));
    let Configs { transformer, vae, .. } = folders.configs.clone();
    let equal = |a: &candle_nn::VarBuilder, b: &candle_nn::VarBuilder, name: &str| {
        let read = |vb: &candle_nn::VarBuilder| {
            let tensor = vb.get_unchecked(name).expect("a tensor");
            (tensor.dims().to_vec(), tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers"))
        };
        assert_eq!(read(a), read(b), "{name}");
    };
    let keeping = super::LoadOptions { dtype: DType::F32, is_text_streamed: false };
    let load = |checkpoint| Checkpoint::load_onto(checkpoint, &Device::Cpu, keeping, std::sync::Arc::new(()));
    let (folders, singles) = (load(&folders).expect("loads"), load(&singles).expect("loads"));
    let (a, b) = (folders.transformer(), singles.transformer());
    for tensor in super::loader::transformer_names(&transformer) {
        equal(&a, &b, &tensor);
    }
    // Either half's builder knows all tensors of both.
    let (a, b) = (folders.decoder(), singles.decoder());
    for tensor in super::loader::vae_names(&vae) {
        equal(&a, &b, &tensor);
    }
}

#[test]
fn an_image_that_is_not_finite_is_refused() {
    let nan = Tensor::new(&[[[[f32::NAN]], [[0.0]], [[0.0]]]], &Device::Cpu).expect("a pixel");
    assert_eq!(vae::to_rgb_bytes(&nan).expect("reads"), None);
}

#[test]
fn segments_cover_the_stream() {
    let segments = ops::Segments::from_lengths([3, 0, 4]);
    assert_eq!((segments.count(), segments.rows(), segments.range(2)), (3, 7, 3..7));
}
