//! A request as stored: enough to generate the same image again.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decode::prepare;
use crate::domain::adapter::{AdapterId, AdapterUse};
use crate::domain::conditioning::{ControlMode, GivenImage, IMAGES, ImageOptions, ImageRole, Preprocess};
use crate::domain::ids::{InvalidId, ModelId};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, steps_done};
use crate::domain::step_cache::StepCache;

/// A resolved request: every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// The model.
    pub model: ModelId,
    /// What to generate.
    pub prompt: String,
    /// T5's prompt, if it differs from `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// What to steer away from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Strength of true classifier-free guidance, with a negative prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<ExactNumber>,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps of the full schedule.
    pub steps: u32,
    /// Value of the guidance embedding.
    pub guidance: ExactNumber,
    /// Seed of the noise.
    pub seed: u64,
    /// T5 tokens.
    pub sequence_length: usize,
    /// Number of input images, in rows that are older than `images`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub input_images: usize,
    /// The images, in the order in which they are stored, separately, until the job ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<RequestedImage>,
    /// Pixels around the mask, if only that region is generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_padding: Option<u32>,
    /// The threshold of the first-block cache, if it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_threshold: Option<ExactNumber>,
    /// How far to depart from the input image, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<ExactNumber>,
    /// The LoRAs, in the order of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<RequestedLora>,
}

/// An image of a request, without its pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestedImage {
    /// What it does.
    pub role: ImageRole,
    /// The name of its ControlNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controlnet: Option<String>,
    /// The kind of control map, for a union.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ControlMode>,
    /// How a map is still to be made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// How strongly it acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ExactNumber>,
    /// The share of the steps before it acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<ExactNumber>,
    /// The share of the steps until which it acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ExactNumber>,
}

impl RequestedImage {
    fn new(role: ImageRole, options: &ImageOptions) -> Self {
        Self {
            role,
            controlnet: options.controlnet.as_deref().map(str::to_owned),
            mode: options.mode,
            preprocess: options.preprocess,
            scale: options.scale.map(ExactNumber),
            start: options.start.map(ExactNumber),
            end: options.end.map(ExactNumber),
        }
    }

    fn options(&self) -> ImageOptions {
        ImageOptions {
            controlnet: self.controlnet.as_deref().map(Arc::from),
            mode: self.mode,
            preprocess: self.preprocess,
            scale: self.scale.map(|number| number.0),
            start: self.start.map(|number| number.0),
            end: self.end.map(|number| number.0),
        }
    }
}

/// A LoRA of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestedLora {
    /// Its id. Its name may come to mean another one.
    pub id: LoraText,
    /// Its strength.
    pub scale: ExactNumber,
}

/// The id of a LoRA, stored as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LoraText(pub AdapterId);

impl From<LoraText> for String {
    fn from(LoraText(id): LoraText) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for LoraText {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<&AdapterUse> for RequestedLora {
    fn from(lora: &AdapterUse) -> Self {
        Self { id: LoraText(lora.id.clone()), scale: ExactNumber(lora.scale) }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that `skip_serializing_if` takes")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

/// A number stored as its shortest decimal text. A JSON reader may round a number's last bit, but a retry must give the
/// same image bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ExactNumber(pub f64);

impl From<ExactNumber> for String {
    fn from(number: ExactNumber) -> Self {
        number.0.to_string()
    }
}

impl TryFrom<String> for ExactNumber {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<&GenerateSpec> for JobRequest {
    fn from(spec: &GenerateSpec) -> Self {
        Self {
            model: spec.model().clone(),
            prompt: spec.prompt().to_owned(),
            prompt_2: Some(spec.t5_prompt()).filter(|text| *text != spec.prompt()).map(str::to_owned),
            negative_prompt: spec.negative().map(|negative| negative.prompt.clone()),
            true_cfg_scale: spec.negative().map(|negative| ExactNumber(negative.scale)),
            width: spec.width(),
            height: spec.height(),
            steps: spec.steps_scheduled(),
            guidance: ExactNumber(spec.guidance()),
            seed: spec.seed(),
            sequence_length: spec.sequence_length(),
            input_images: 0,
            images: spec.given_images().map(|(role, _, options)| RequestedImage::new(role, &options)).collect(),
            mask_padding: spec.overlay().map(|overlay| overlay.padding),
            cache_threshold: spec.step_cache().map(|cache| ExactNumber(cache.threshold)),
            strength: spec.input_image().map(|start| ExactNumber(start.strength)),
            loras: spec.loras().iter().map(RequestedLora::from).collect(),
        }
    }
}

impl JobRequest {
    /// Denoising steps that are run: fewer than those of the schedule with an input image.
    #[must_use]
    pub fn steps_done(&self) -> u32 {
        steps_done(self.steps, self.strength.map(|number| number.0))
    }

    /// Number of its images.
    #[must_use]
    pub fn images_count(&self) -> usize {
        self.input_images.max(self.images.len())
    }

    /// The images with their roles and options.
    fn given(&self, card: &ModelCard, images: Vec<Arc<RgbImage>>) -> Vec<GivenImage> {
        let named = |index: usize, image: Arc<RgbImage>| {
            let requested = self.images.get(index);
            let role = requested.map_or(card.conditioning.main_role(), |requested| requested.role);
            let options = requested.map(RequestedImage::options).unwrap_or_default();
            GivenImage { options, ..GivenImage::new(format!("{IMAGES}[{index}]"), role, image) }
        };
        images.into_iter().enumerate().map(|(index, image)| named(index, image)).collect()
    }

    /// The request for the engine, with its images in the order of [`Self::images`], and with the files of its LoRAs in the folder `loras`. Checked again:
    /// the card may have changed since it was stored.
    ///
    /// # Errors
    /// The rules it breaks now.
    pub fn to_spec(
        &self,
        card: &ModelCard,
        images: Vec<Arc<RgbImage>>,
        loras: &Path,
    ) -> Result<GenerateSpec, Vec<FieldError>> {
        let lora = |RequestedLora { id: LoraText(id), scale }: &RequestedLora| AdapterUse {
            file: id.file_in(loras).into(),
            id: id.clone(),
            scale: scale.0,
        };
        let params = GenerateParams {
            prompt: self.prompt.clone(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt: self.negative_prompt.clone(),
            true_cfg_scale: self.true_cfg_scale.map(|number| number.0),
            width: Some(self.width),
            height: Some(self.height),
            steps: Some(self.steps),
            guidance: Some(self.guidance.0),
            seed: self.seed,
            sequence_length: Some(self.sequence_length),
            images: self.given(card, images),
            mask_padding: self.mask_padding,
            overlay: None,
            step_cache: self.cache_threshold.map(|number| StepCache { threshold: number.0 }),
            strength: self.strength.map(|number| number.0),
            loras: self.loras.iter().map(lora).collect(),
        };
        // A region around a mask is cut out again.
        GenerateSpec::new(prepare(params, card), card)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn a_stored_request_gives_the_same_spec_bit_for_bit() {
        let catalog = Catalog::new(&[]).expect("no choices");
        let card = catalog.card(&ModelId::new("black-forest-labs/FLUX.1-dev")).expect("built in");
        let params = GenerateParams {
            prompt: "a fox".into(),
            prompt_2: Some("an owl".into()),
            negative_prompt: Some("rain".into()),
            true_cfg_scale: Some(1.0 + f64::EPSILON),
            guidance: Some(0.1 + 0.2),
            seed: (1 << 53) - 1,
            ..GenerateParams::default()
        };
        let spec = GenerateSpec::new(params, card).expect("valid");
        let kept = serde_json::to_string(&JobRequest::from(&spec)).expect("plain data");
        let read: JobRequest = serde_json::from_str(&kept).expect("what was written");
        assert_eq!(read.to_spec(card, Vec::new(), Path::new("loras")), Ok(spec));
        let id = AdapterId::of_sha256([7; 32]);
        let file: Arc<Path> = id.file_in(Path::new("loras")).into();
        let lora = AdapterUse { id, file, scale: 0.1 + 0.2 };
        let params = GenerateParams { prompt: "a fox".into(), loras: vec![lora; 2], ..GenerateParams::default() };
        let spec = GenerateSpec::new(params, card).expect("valid");
        let kept = serde_json::to_string(&JobRequest::from(&spec)).expect("plain data");
        let read: JobRequest = serde_json::from_str(&kept).expect("what was written");
        assert_eq!(read.to_spec(card, Vec::new(), Path::new("loras")), Ok(spec));
        let image = Arc::new(RgbImage::new(512, 512, vec![9; 512 * 512 * 3]).expect("three bytes per pixel"));
        let params = GenerateParams {
            prompt: "a fox".into(),
            images: vec![GivenImage::new("images[0]", ImageRole::Input, Arc::clone(&image))],
            strength: Some(0.1 + 0.2),
            ..GenerateParams::default()
        };
        let card = ModelCard { input_images_max: 1, ..ModelCard::clone(card) };
        let spec = GenerateSpec::new(params, &card).expect("valid");
        let kept = serde_json::to_string(&JobRequest::from(&spec)).expect("plain data");
        let read: JobRequest = serde_json::from_str(&kept).expect("what was written");
        assert_eq!((read.steps, read.steps_done(), read.images_count()), (30, 9, 1));
        let loras = Path::new("loras");
        assert_eq!(read.to_spec(&card, vec![image], loras), Ok(spec));
        assert!(read.to_spec(&card, Vec::new(), loras).is_err(), "the input image is missing");
    }
}
