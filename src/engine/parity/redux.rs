//! FLUX.1-Redux: every recorded case, stage by stage, and style images beside others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use tempfile::TempDir;

use super::merged::{self, Merged};
use super::support::{
    CLIP, LATENTS, T5, admit_encoded, assert_close, card, check_run, diffusers_folders, engine, json, none, reference,
    tensors,
};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{GivenImage, ImageOptions, ImageRole, StyleCard};
use crate::domain::device::DeviceChoice;
use crate::domain::engine::{EngineError, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::model::{Attachments, CompletedFiles, ModelCard, ModelFiles};
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::FluxEngine;
use crate::engine::models::flux1::text::PromptEmbedding;
use crate::engine::models::flux1::text::styles::{Styled, combined};
use crate::engine::vision::{VisionFiles, style_card};

const FOLDER: &str = "family/redux/FLUX.1-Redux-dev";
const CARD: StyleCard = StyleCard { side: 58, tokens: 16 };

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
    prior: Prior,
    text_encoders: bool,
}

#[derive(Deserialize)]
struct Arguments {
    height: u32,
    width: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    seed: u64,
}

#[derive(Deserialize)]
struct Prior {
    prompt: Option<EachOrAll<String>>,
    prompt_embeds_scale: Option<EachOrAll<f64>>,
    pooled_prompt_embeds_scale: Option<EachOrAll<f64>>,
}

/// A value for all images, or one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum EachOrAll<T> {
    All(T),
    Each(Vec<T>),
}

impl<T: Clone> EachOrAll<T> {
    fn of(&self, index: usize) -> T {
        match self {
            Self::All(value) => value.clone(),
            Self::Each(values) => values[index].clone(),
        }
    }
}

impl Case {
    fn recorded(&self) -> HashMap<String, Tensor> {
        tensors(&format!("family/redux/{}", self.file))
    }

    fn scales(&self, index: usize) -> (f64, f64) {
        let of = |scales: Option<&EachOrAll<f64>>| scales.map_or(1.0, |scales| scales.of(index));
        (of(self.prior.prompt_embeds_scale.as_ref()), of(self.prior.pooled_prompt_embeds_scale.as_ref()))
    }

    fn prompt(&self, index: usize) -> String {
        self.prior.prompt.as_ref().filter(|_| self.text_encoders).map_or_else(String::new, |prompt| prompt.of(index))
    }

    /// Whether a request can ask for it: one scale for each image, and one prompt for all.
    fn is_of_a_request(&self, images: usize) -> bool {
        (0..images).all(|index| {
            let (scale, pooled_scale) = self.scales(index);
            // Without a prompt the pooled vector is zeros, whatever they are multiplied by.
            self.prompt(index) == self.prompt(0) && (scale == pooled_scale || self.prompt(index).is_empty())
        })
    }

    fn spec(&self, images: &[RgbImage]) -> GenerateSpec {
        self.spec_with(images, &[])
    }

    /// [`Self::spec`] with adapters.
    fn spec_with(&self, images: &[RgbImage], loras: &[AdapterUse]) -> GenerateSpec {
        let styles = images.iter().enumerate().map(|(index, image)| style(image, self.scales(index).0)).collect();
        let (prompt, loras) = (self.prompt(0), loras.to_vec());
        let params = GenerateParams { prompt, images: styles, loras, ..self.params() };
        GenerateSpec::new(params, &style_model()).expect("a valid case")
    }

    fn params(&self) -> GenerateParams {
        let Arguments { height, width, num_inference_steps, guidance_scale, seed } = self.args;
        GenerateParams {
            height: Some(height),
            width: Some(width),
            steps: Some(num_inference_steps),
            guidance: Some(guidance_scale),
            sequence_length: Some(512),
            seed,
            ..GenerateParams::default()
        }
    }
}

fn cases() -> Vec<Case> {
    json::<Cases>("family/redux/cases.json").cases
}

fn style(image: &RgbImage, scale: f64) -> GivenImage {
    let options = ImageOptions { scale: Some(scale), ..ImageOptions::default() };
    GivenImage { options, ..GivenImage::new("style", ImageRole::Style, Arc::new(image.clone())) }
}

fn style_model() -> ModelCard {
    let mut card = card();
    card.attached.style = Some(CARD);
    card
}

/// The image whose pixels, from -1 to 1, were recorded: `[3, side, side]`.
fn image_of(pixels: &Tensor) -> RgbImage {
    let interleaved = pixels.permute((1, 2, 0)).and_then(|pixels| pixels.flatten_all()?.to_vec1::<f32>());
    let bytes = interleaved.expect("pixels").into_iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect();
    RgbImage::new(CARD.side, CARD.side, bytes).expect("three bytes per pixel")
}

fn images_of(recorded: &HashMap<String, Tensor>) -> Vec<RgbImage> {
    let all = &recorded["pixel_values"];
    (0..all.dims()[0]).map(|index| image_of(&all.get(index).expect("an image"))).collect()
}

fn with_redux(folder: PathBuf) -> ModelFiles {
    beside(reference("FLUX.1-dev"), folder)
}

/// A checkpoint with FLUX.1-Redux beside it.
fn beside(path: PathBuf, folder: PathBuf) -> ModelFiles {
    ModelFiles::Completed(Box::new(CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base: None,
        attachments: Attachments { redux: Some(folder), ..Attachments::default() },
    }))
}

/// A folder with links to files of the reference: their names there, and here.
fn linked(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (from, to) in files {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        std::os::unix::fs::symlink(reference(FOLDER).join(from), to).expect("linked");
    }
    folder
}

/// As other tools have the files: the embedder alone, with the image encoder beside it.
fn single_file() -> TempDir {
    let same = |path| (path, path);
    linked(&[
        same("flux1-redux-dev.safetensors"),
        same("image_encoder/config.json"),
        same("image_encoder/model.safetensors"),
    ])
}

/// The stages before the transformer; returns the embedding that it gets.
fn check_embedding(engine: &mut FluxEngine, case: &Case, images: &[RgbImage]) -> PromptEmbedding {
    let (name, recorded) = (&case.name, case.recorded());
    let of = |name: &str, index: usize| recorded[name].get(index).expect("of an image");
    let mut rows = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let styles = engine.model.vision.styles.as_ref().expect("loaded");
        let pixels = of("pixel_values", index);
        assert_close(&format!("{name} pixels"), &styles.encoder.pixels(image).expect("pixels"), &pixels, 1e-6);
        let states = styles.encoder.forward(&pixels).expect("encodes");
        assert_close(&format!("{name} states"), &states, &of("siglip_last_hidden_state", index), T5);
        let embedded = styles.rows(&of("siglip_last_hidden_state", index)).expect("embeds");
        assert_close(&format!("{name} embedder"), &embedded, &of("redux_image_embeds", index), T5);
        let embedded = engine.model.style_embedding(image).expect("embeds");
        assert_close(&format!("{name} image"), &embedded, &of("redux_image_embeds", index), T5);
        rows.push(embedded);
    }
    let zeros = |rows: usize| Tensor::zeros((rows, 32), DType::F32, &Device::Cpu).expect("zeros");
    let prompt = |index| {
        let prompt = case.prompt(index);
        if prompt.is_empty() {
            return PromptEmbedding { pooled: zeros(1), sequence: zeros(512) };
        }
        engine.model.embed(&prompt, &prompt, 512, &none()).expect("embeds")
    };
    let prompts: Vec<PromptEmbedding> = (0..images.len()).map(prompt).collect();
    let styled = prompts.iter().zip(&rows).enumerate().map(|(index, (prompt, image))| {
        let (scale, pooled_scale) = case.scales(index);
        Styled { prompt, image, scale, pooled_scale }
    });
    let embedding = combined(styled).expect("combines");
    assert_close(&format!("{name} rows"), &embedding.sequence, &of("prompt_embeds", 0), T5);
    assert_close(&format!("{name} pooled"), &embedding.pooled, &of("pooled_prompt_embeds", 0), CLIP);
    embedding
}

fn check(engine: &mut FluxEngine, case: &Case) {
    let (name, recorded) = (&case.name, case.recorded());
    let images = images_of(&recorded);
    let embedding = check_embedding(engine, case, &images);
    let spec = case.spec(&images);
    let slot = admit_encoded(engine, &spec);
    assert_eq!(engine.images[&slot].step_tokens(), spec.step_tokens(), "{name}");
    let pass = engine.model.pass(&embedding, spec.guidance(), &none()).expect("a pass");
    let image = engine.images.get_mut(&slot).expect("admitted");
    if case.is_of_a_request(images.len()) {
        assert_close(&format!("{name} text"), &image.prompt.text, &pass.text, LATENTS);
        assert_close(&format!("{name} condition"), &image.prompt.condition, &pass.condition, LATENTS);
    } else {
        image.prompt = pass;
    }
    check_run(engine, (name, slot), &recorded, LATENTS);
}

#[test]
fn every_recorded_case_equals_diffusers_from_the_published_folder() {
    let mut engine = engine(&with_redux(reference(FOLDER)));
    let cases = cases();
    for case in &cases {
        check(&mut engine, case);
    }
    assert_eq!(cases.len(), 5, "every case");
    let of_requests = cases.iter().filter(|case| case.is_of_a_request(images_of(&case.recorded()).len())).count();
    assert_eq!(of_requests, 4, "most come through a request alone");
}

#[test]
fn every_recorded_case_equals_diffusers_from_the_single_file() {
    let folder = single_file();
    let mut engine = engine(&with_redux(folder.path().to_owned()));
    for case in &cases() {
        check(&mut engine, case);
    }
}

#[test]
fn an_adapter_acts_beside_a_style_image_as_if_it_were_merged() {
    let (merged, redux) = (Merged::of_dev(), reference(FOLDER));
    let case = cases().into_iter().find(|case| case.name == "r4_with_prompt").expect("a recorded case");
    let images = images_of(&case.recorded());
    let files = [with_redux(redux.clone()), beside(merged.folder().to_owned(), redux)];
    merged::check(&case.name, &files, merged.lora(), |loras| case.spec_with(&images, loras));
}

/// Generates images one after the other, or together.
fn generated(engine: &mut FluxEngine, specs: &[GenerateSpec], are_together: bool) -> Vec<RgbImage> {
    let batches: Vec<&[GenerateSpec]> = if are_together { vec![specs] } else { specs.chunks(1).collect() };
    let mut images = Vec::new();
    for batch in batches {
        let slots: Vec<_> = batch.iter().map(|spec| engine.admit(spec).expect("admits")).collect();
        for _ in 0..batch[0].steps() {
            engine.step(&slots).expect("steps");
        }
        images.extend(slots.into_iter().map(|slot| engine.finish(slot).expect("finishes")));
    }
    images
}

#[test]
fn a_style_image_has_the_same_bits_alone_and_beside_others() {
    let mut engine = engine(&with_redux(reference(FOLDER)));
    let case = &cases()[2];
    let images = images_of(&case.recorded());
    let spec = |params: GenerateParams| GenerateSpec::new(params, &style_model()).expect("valid");
    let prompted = |prompt: &str, seed| GenerateParams { prompt: prompt.to_owned(), seed, ..case.params() };
    let specs = [
        spec(prompted("a red circle", 1)),
        spec(GenerateParams { images: vec![style(&images[0], 1.0), style(&images[1], 0.4)], ..prompted("", 2) }),
        spec(GenerateParams { sequence_length: Some(64), ..prompted("two squares", 3) }),
        spec(GenerateParams {
            images: vec![style(&images[1], 0.7)],
            negative_prompt: Some("rain".to_owned()),
            true_cfg_scale: Some(3.0),
            ..prompted("a red circle", 4)
        }),
    ];
    let alone = generated(&mut engine, &specs, false);
    let together = generated(&mut engine, &specs, true);
    assert!(alone.iter().zip(&together).all(|(alone, together)| alone.pixels() == together.pixels()));
    let without = spec(prompted("", 2));
    assert!(generated(&mut engine, &[without], false)[0] != alone[1], "the style images count");
    // What is cached of a prompt has nothing of the images beside it.
    let cached = engine.model.embed("a red circle", "a red circle", 512, &none()).expect("embeds");
    assert_eq!(cached.sequence.dims(), [512, 32]);
}

fn refused(files: &ModelFiles, text_width: usize) -> String {
    VisionFiles::open(files, text_width).err().expect("refused").to_string()
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let error = refused(&with_redux(reference(FOLDER)), 64);
    assert!(
        error.contains("diffusion_pytorch_model.safetensors: ") && error.contains("joint_attention_dim"),
        "{error}"
    );
    assert!(FluxEngine::load(&with_redux("no folder".into()), DeviceChoice::Cpu).is_err());
    // An embedder for another image encoder.
    let folder = single_file();
    let path = folder.path().join("flux1-redux-dev.safetensors");
    std::fs::remove_file(&path).expect("a link");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
    let made = HashMap::from([
        ("redux_up.weight", zeros(&[96, 24])),
        ("redux_up.bias", zeros(&[96])),
        ("redux_down.weight", zeros(&[32, 96])),
        ("redux_down.bias", zeros(&[32])),
    ]);
    candle_core::safetensors::save(&made, &path).expect("written");
    let error = refused(&with_redux(folder.path().to_owned()), 32);
    assert!(error.contains("images of 24 numbers a patch, and the image encoder gives 32"), "{error}");
    std::fs::remove_file(&path).expect("the file");
    let error = refused(&with_redux(folder.path().to_owned()), 32);
    assert!(error.contains("missing") && error.contains("flux1-redux-dev.safetensors"), "{error}");
}

#[test]
fn a_request_needs_what_is_loaded() {
    let mut plain = engine(&diffusers_folders());
    let case = &cases()[0];
    let spec = case.spec(&images_of(&case.recorded()));
    let refused = plain.admit(&spec);
    assert!(matches!(&refused, Err(EngineError::Request(reason)) if reason.contains("FLUX.1-Redux")), "{refused:?}");
    let mut engine = engine(&with_redux(reference(FOLDER)));
    let side = CARD.side + 14;
    let image = RgbImage::new(side, side, vec![0; (side * side * 3) as usize]).expect("three bytes per pixel");
    let mut model = style_model();
    model.attached.style = Some(StyleCard { side, tokens: 25 });
    let params = GenerateParams { images: vec![style(&image, 1.0)], ..case.params() };
    let refused = engine.admit(&GenerateSpec::new(params, &model).expect("valid"));
    assert!(matches!(&refused, Err(EngineError::Request(reason)) if reason.contains("58x58 pixels")), "{refused:?}");
}

#[test]
fn the_card_follows_from_the_configuration() {
    let card_of = |path: &Path| style_card(path).map_err(|error| error.to_string());
    assert_eq!(card_of(&reference(FOLDER)), Ok(CARD));
    let single = linked(&[("image_encoder/model.safetensors", "sigclip_vision_patch14_384.safetensors")]);
    assert_eq!(card_of(single.path()), Ok(StyleCard { side: 384, tokens: 729 }), "the published one");
    // That file has no configuration, and so must have the published shapes.
    let error = refused(&with_redux(single.path().to_owned()), 32);
    assert!(error.contains("sigclip_vision_patch14_384.safetensors: tensor `vision_model."), "{error}");
    let none = linked(&[]);
    let error = card_of(none.path()).expect_err("there is nothing");
    assert!(error.contains("image_encoder/model.safetensors: missing"), "{error}");
    std::fs::create_dir_all(none.path().join("image_encoder")).expect("made");
    for (text, reason) in [
        ("{", "config.json: "),
        (r#"{"hidden_act": "relu"}"#, "hidden_act must be"),
        (r#"{"image_size": 8, "patch_size": 14}"#, "patch_size at most image_size"),
        (r#"{"hidden_size": 1152, "num_attention_heads": 5}"#, "attention heads"),
        (r#"{"num_hidden_layers": 100000}"#, "1000 layers"),
    ] {
        std::fs::write(none.path().join("image_encoder/config.json"), text).expect("written");
        let error = card_of(none.path()).expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }
}
