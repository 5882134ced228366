//! The recorded runs of models that images steer: FLUX.1-Kontext, -Fill, -Canny and -Depth, and FLUX.1-dev with an input image and a
//! mask.

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;
use tempfile::TempDir;

use super::support::{Tensors, card, json, reference, tensors};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::image::RgbImage;
use crate::domain::model::{Attachments, CompletedFiles, ModelCard, ModelFiles};
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// A checkpoint of the family: its transformer, with what it shares with the others in links.
pub(super) struct Checkpoint {
    folder: TempDir,
    /// Its folder below `tests/reference/family`.
    path: &'static str,
    /// Its transformer in one file, if there is one.
    file: Option<&'static str>,
    pub(super) conditioning: Conditioning,
}

impl Checkpoint {
    pub(super) fn kontext() -> Self {
        let file = Some("flux1-kontext-dev.safetensors");
        Self::new("kontext/FLUX.1-Kontext-dev", file, Conditioning::References)
    }

    pub(super) fn fill() -> Self {
        Self::new("fill/FLUX.1-Fill-dev", Some("flux1-fill-dev.safetensors"), Conditioning::Fill)
    }

    pub(super) fn canny() -> Self {
        Self::new("control/FLUX.1-Canny-dev", Some("flux1-canny-dev.safetensors"), Conditioning::Control)
    }

    pub(super) fn depth() -> Self {
        Self::new("control/FLUX.1-Depth-dev", None, Conditioning::Control)
    }

    fn new(path: &'static str, file: Option<&'static str>, conditioning: Conditioning) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let link = |from: &str, to: &str| symlink(reference(from), folder.path().join(to)).expect("linked");
        for part in ["model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            link(&format!("FLUX.1-dev/{part}"), part);
        }
        link("family/vae", "vae");
        link(&format!("family/{path}/transformer"), "transformer");
        Self { folder, path, file, conditioning }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// In folders.
    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::Directory(self.folder.path().to_owned())
    }

    /// The reference file of its transformer, in the names of its authors.
    pub(super) fn single_path(&self) -> Option<String> {
        self.file.map(|file| format!("family/{}/{file}", self.path))
    }

    /// With the transformer in one file.
    pub(super) fn single_file(&self) -> Option<ModelFiles> {
        self.single_path().map(|path| completed(reference(&path)))
    }

    pub(super) fn card(&self) -> ModelCard {
        card_of(self.conditioning)
    }
}

/// A file of a transformer, with the family's autoencoder and the rest of FLUX.1-dev.
pub(super) fn completed(path: PathBuf) -> ModelFiles {
    ModelFiles::Completed(Box::new(CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: Some(reference("family/vae")),
        base: Some(ModelFiles::Directory(reference("FLUX.1-dev"))),
        attachments: Attachments::default(),
    }))
}

/// A card of a model that reads so.
pub(super) fn card_of(conditioning: Conditioning) -> ModelCard {
    let is_needed = matches!(conditioning, Conditioning::Fill | Conditioning::Control);
    let input_images_max = if conditioning == Conditioning::References { 4 } else { 1 };
    ModelCard { conditioning, input_images_min: usize::from(is_needed), input_images_max, ..card() }
}

/// The recorded runs of a folder.
#[derive(Deserialize)]
pub(super) struct Cases {
    pub(super) cases: Vec<Case>,
    /// Where a tensor is that is the same as another case's.
    stored_under_another_case: HashMap<String, String>,
}

/// A recorded run.
#[derive(Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) args: Arguments,
    /// The file of its tensors.
    #[serde(rename = "case")]
    pub(super) file: String,
    /// Height and width.
    image_size: [u32; 2],
    pub(super) steps_run: u32,
}

#[derive(Deserialize)]
pub(super) struct Arguments {
    image: Option<String>,
    mask_image: Option<String>,
    control_image: Option<String>,
    pub(super) padding_mask_crop: Option<u32>,
    strength: Option<f64>,
    seed: u64,
    prompt: String,
    pub(super) negative_prompt: Option<String>,
    true_cfg_scale: Option<f64>,
    num_inference_steps: u32,
    pub(super) guidance_scale: f64,
    max_sequence_length: usize,
    #[serde(default = "one")]
    pub(super) num_images_per_prompt: u32,
}

fn one() -> u32 {
    1
}

impl Cases {
    pub(super) fn of(folder: &str) -> Self {
        json(&format!("family/{folder}/cases.json"))
    }

    /// The tensors of a case, those that are stored under another one, too.
    pub(super) fn tensors(&self, folder: &str, case: &Case) -> Tensors {
        let of_file = |file: &str| tensors(&format!("family/{folder}/{file}"));
        let mut recorded = of_file(&case.file);
        for (missing, stored) in &self.stored_under_another_case {
            let (Some(name), Some((other, tensor))) =
                (missing.strip_prefix(&format!("{}/", case.name)), stored.split_once('/'))
            else {
                continue;
            };
            let others = of_file(&format!("cases/{other}.safetensors"));
            recorded.insert(name.to_owned(), others[tensor].clone());
        }
        recorded
    }
}

/// The image whose pixels the encoder was given: `[1, 3, height, width]` from -1 to 1, or the first of several.
pub(super) fn image_of(pixels: &Tensor) -> Arc<RgbImage> {
    let pixels = pixels.get(0).expect("a picture");
    let (_, height, width) = pixels.dims3().expect("colors and sides");
    let rows = pixels.permute((1, 2, 0)).and_then(|rows| rows.flatten_all()?.to_vec1::<f32>()).expect("numbers");
    let bytes = rows.into_iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect();
    Arc::new(RgbImage::new(width as u32, height as u32, bytes).expect("three bytes a pixel"))
}

/// The mask whose hole is in the pixels: no byte becomes 0.
fn mask_of(pixels: &Tensor) -> Arc<RgbImage> {
    let pixels = pixels.get(0).expect("a picture");
    let (_, height, width) = pixels.dims3().expect("colors and sides");
    let rows = pixels.permute((1, 2, 0)).and_then(|rows| rows.flatten_all()?.to_vec1::<f32>()).expect("numbers");
    let bytes = rows.into_iter().map(|value| if value == 0.0 { 255 } else { 0 }).collect();
    Arc::new(RgbImage::new(width as u32, height as u32, bytes).expect("three bytes a pixel"))
}

impl Case {
    /// Its images, from what the encoder was given.
    pub(super) fn images(&self, recorded: &Tensors, conditioning: Conditioning) -> Vec<GivenImage> {
        let given = |role: ImageRole, image| GivenImage::new("images[0]", role, image);
        let encoded = |index: usize| &recorded[&format!("vae_encode.{index}.in")];
        let mut images = Vec::new();
        if self.args.image.is_some() || self.args.control_image.is_some() {
            images.push(given(conditioning.main_role(), image_of(encoded(0))));
        }
        if self.args.mask_image.is_some() {
            images.push(given(ImageRole::Mask, mask_of(encoded(1))));
        }
        images
    }

    /// One spec per image, in the recorded order.
    pub(super) fn specs(&self, recorded: &Tensors, card: &ModelCard) -> Vec<GenerateSpec> {
        self.specs_with(recorded, card, &[])
    }

    /// [`Self::specs`] with adapters.
    pub(super) fn specs_with(&self, recorded: &Tensors, card: &ModelCard, loras: &[AdapterUse]) -> Vec<GenerateSpec> {
        let args = &self.args;
        let params = GenerateParams {
            prompt: args.prompt.clone(),
            negative_prompt: args.negative_prompt.clone(),
            true_cfg_scale: args.true_cfg_scale,
            width: Some(self.image_size[1]),
            height: Some(self.image_size[0]),
            steps: Some(args.num_inference_steps),
            guidance: Some(args.guidance_scale),
            seed: args.seed,
            sequence_length: Some(args.max_sequence_length),
            images: self.images(recorded, card.conditioning),
            strength: args.strength,
            loras: loras.to_vec(),
            ..GenerateParams::default()
        };
        let spec = GenerateSpec::new(params, card).unwrap_or_else(|errors| panic!("{}: {errors:?}", self.name));
        assert_eq!(spec.steps(), self.steps_run, "{}", self.name);
        let count = args.num_images_per_prompt;
        (0..count).map(|index| spec.clone().at_index(index, count)).collect()
    }
}
