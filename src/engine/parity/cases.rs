//! The recorded cases.

use std::sync::Arc;

use serde::Deserialize;

use super::support::{card, tensors};
use crate::domain::conditioning::{GivenImage, ImageRole};
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};

#[derive(Deserialize)]
pub(super) struct Cases {
    pub(super) cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    prompt: Prompts,
    prompt_2: Option<String>,
    pub(super) negative_prompt: Option<String>,
    true_cfg_scale: Option<f64>,
    height: u32,
    width: u32,
    steps: u32,
    guidance: f64,
    pub(super) seed: u64,
    max_sequence_length: Option<usize>,
    #[serde(default = "one")]
    num_images_per_prompt: usize,
    pub(super) strength: Option<f64>,
    pub(super) file: String,
}

fn one() -> usize {
    1
}

impl Case {
    /// The input image, if there is one.
    pub(super) fn input_images(&self) -> Vec<GivenImage> {
        if self.strength.is_none() {
            return Vec::new();
        }
        let pixels = tensors(&self.file)["init_image_u8"].flatten_all().and_then(|flat| flat.to_vec1());
        let image = RgbImage::new(self.width, self.height, pixels.expect("bytes")).expect("of the case's size");
        vec![GivenImage::new("image", ImageRole::Input, Arc::new(image))]
    }

    /// One spec per image, in the recorded order. Sizes are floored to whole tokens, as diffusers does.
    pub(super) fn specs(&self) -> Vec<GenerateSpec> {
        let prompts = match &self.prompt {
            Prompts::One(prompt) => vec![prompt.clone()],
            Prompts::Many(prompts) => prompts.clone(),
        };
        let batch = prompts.len() * self.num_images_per_prompt;
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
                images: self.input_images(),
                strength: self.strength,
                ..GenerateParams::default()
            };
            GenerateSpec::new(params, &card()).expect("a valid case").at_index(index as u32, batch as u32)
        };
        repeated.enumerate().map(spec).collect()
    }
}
