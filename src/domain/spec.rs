//! A validated request. [`GenerateParams`] is what was asked for; [`GenerateSpec`] can only be made from it by checking
//! it against the model's card, so no other code checks again.

mod adapters;
mod images;
mod params;
mod rules;

use std::sync::Arc;

use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{ControlImage, ImageOptions, ImageRole, StyleImage};
use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::overlay::Overlay;
use crate::domain::step_cache::StepCache;
use crate::domain::usage::ImageCost;

pub use adapters::lora_errors;
use images::CheckedImages;
pub use images::{image_count_errors, option_errors};
pub use params::GenerateParams;
use rules::{cache_error, check_prompts};
pub use rules::{size_errors, steps_done, strength_error};

/// Largest seed: the largest integer that every JSON reader keeps exactly (2^53 − 1).
pub const SEED_MAX: u64 = (1 << 53) - 1;

/// A random seed from the operating system, for a request without one.
///
/// # Errors
/// When the system gives no random numbers.
pub fn random_seed() -> Result<u64, getrandom::Error> {
    Ok(getrandom::u64()? & SEED_MAX)
}

/// Pixels along one side of an image token: the VAE's 8 times the patch's 2.
pub const PIXELS_PER_TOKEN_SIDE: u32 = 16;

/// The longest T5 sequence FLUX was trained with, in tokens.
pub const SEQUENCE_LENGTH_MAX: usize = 512;

/// The field of the images in the model's main role.
pub const INPUT_IMAGES: &str = "input_images_base64";

/// The field of the pixels around a mask.
pub const MASK_PADDING: &str = "mask_padding";

/// Maximum pixels around a mask.
pub const MASK_PADDING_MAX: u32 = 4096;

/// Default share of the schedule that is run with an input image. As in diffusers.
pub const STRENGTH_DEFAULT: f64 = 0.6;

/// That of a model that repaints by its own training. As in diffusers' `FluxFillPipeline`.
pub const FILL_STRENGTH_DEFAULT: f64 = 1.0;

/// A rule that a request breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field as the wire names it.
    pub field: String,
    /// What is wrong, with the rule's numbers, for the client.
    pub reason: String,
}

impl FieldError {
    /// A broken rule of one field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// An input image and how much of it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct InputImage {
    /// The image, in the output size.
    pub image: Arc<RgbImage>,
    /// Share of the schedule that is run: 1 leaves nothing of the image. Above 0, at most 1.
    pub strength: f64,
}

/// True classifier-free guidance: a second pass with another prompt, and how far to move away from it.
#[derive(Debug, Clone, PartialEq)]
pub struct NegativeGuidance {
    /// The prompt of the second pass.
    pub prompt: String,
    /// `uncond + scale × (cond − uncond)`; above 1.
    pub scale: f64,
}

/// A valid request for an image: every value has been checked against the model's card.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSpec {
    model: ModelId,
    prompt: String,
    prompt_2: Option<String>,
    negative: Option<NegativeGuidance>,
    width: u32,
    height: u32,
    steps: u32,
    guidance: f64,
    seed: u64,
    image_index: u32,
    batch_size: u32,
    sequence_length: usize,
    images: CheckedImages,
    loras: Vec<AdapterUse>,
    step_cache: Option<StepCache>,
}

impl GenerateSpec {
    /// Checks `params` against `card` and fills in its defaults. Images must already have the sizes that their roles require.
    ///
    /// # Errors
    /// Every broken rule, not only the first.
    pub fn new(mut params: GenerateParams, card: &ModelCard) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        check_prompts(&params, card, &mut errors);
        params.settle_size(card);
        let (width, height) = (params.width.unwrap_or_default(), params.height.unwrap_or_default());
        errors.extend(size_errors((width, height), &card.limits));
        let steps = params.steps.unwrap_or(card.defaults.steps);
        let limits = &card.limits;
        if !(limits.steps_min..=limits.steps_max).contains(&steps) {
            let reason = format!("must be from {} to {}, not {steps}", limits.steps_min, limits.steps_max);
            errors.push(FieldError::new("steps", reason));
        }
        let guidance = params.guidance.unwrap_or(card.defaults.guidance);
        if !(limits.guidance_min..=limits.guidance_max).contains(&guidance) {
            let reason = format!("must be from {} to {}, not {guidance}", limits.guidance_min, limits.guidance_max);
            errors.push(FieldError::new("guidance", reason));
        }
        if params.seed > SEED_MAX {
            errors.push(FieldError::new("seed", format!("must be from 0 to {SEED_MAX} (2^53 - 1)")));
        }
        errors.extend(image_count_errors(&params, card));
        errors.extend(option_errors(&params, card));
        errors.extend(strength_error(params.strength, steps, params.count(ImageRole::Input)));
        errors.extend(lora_errors(&params.loras));
        errors.extend(cache_error(params.step_cache));
        let sequence_length = params.sequence_length.unwrap_or(card.sequence_length);
        if !(1..=SEQUENCE_LENGTH_MAX).contains(&sequence_length) {
            let reason = format!("must be from 1 to {SEQUENCE_LENGTH_MAX}, not {sequence_length}");
            errors.push(FieldError::new("max_sequence_length", reason));
        }
        let scale = params.true_cfg_scale.unwrap_or(card.true_cfg_scale);
        if params.negative_prompt.is_some() && !(scale > 1.0 && scale <= limits.guidance_max) {
            let reason = format!("must be above 1 and at most {}, not {scale}", limits.guidance_max);
            errors.push(FieldError::new("true_cfg_scale", reason));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let images = CheckedImages::of(&params, card, (width, height))?;
        Ok(Self {
            model: card.id.clone(),
            prompt: params.prompt,
            prompt_2: params.prompt_2.filter(|text| !text.is_empty()),
            negative: params.negative_prompt.map(|prompt| NegativeGuidance { prompt, scale }),
            width,
            height,
            steps,
            guidance,
            seed: params.seed,
            image_index: 0,
            batch_size: 1,
            sequence_length,
            images,
            loras: params.loras,
            step_cache: params.step_cache,
        })
    }

    /// The `index`-th image of a batch of `size` that shares one generator, as torch samples the noise of
    /// `num_images_per_prompt` images: the noise of the first `index` images is skipped.
    #[must_use]
    pub fn at_index(mut self, index: u32, size: u32) -> Self {
        (self.image_index, self.batch_size) = (index, size);
        self
    }

    /// The same request with the seed that is `later` behind its own. Behind the largest seed comes 0.
    #[must_use]
    pub fn with_later_seed(&self, later: u32) -> Self {
        Self { seed: (self.seed + u64::from(later)) % (SEED_MAX + 1), ..self.clone() }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// CLIP's prompt.
    #[must_use]
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// T5's prompt: `prompt_2`, or else the prompt.
    #[must_use]
    pub fn t5_prompt(&self) -> &str {
        self.prompt_2.as_deref().unwrap_or(&self.prompt)
    }

    /// The second pass, if any.
    #[must_use]
    pub fn negative(&self) -> Option<&NegativeGuidance> {
        self.negative.as_ref()
    }

    /// Pixels, a multiple of the card's `size_multiple_of`.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels, a multiple of the card's `size_multiple_of`.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The image's cost factors.
    #[must_use]
    pub fn cost(&self) -> ImageCost {
        ImageCost { pixels: u64::from(self.width) * u64::from(self.height), passes: self.passes() as u32 }
    }

    /// Cost of the image when it is generated once, completely.
    #[must_use]
    pub fn pixel_steps(&self) -> u64 {
        self.cost().pixel_steps(1, self.steps())
    }

    /// Denoising steps that are run: those of the schedule, less those that an input image skips.
    #[must_use]
    pub fn steps(&self) -> u32 {
        let strength = self.input_image().map(|start| start.strength);
        steps_done(self.steps, strength)
    }

    /// Denoising steps of the full schedule, as requested.
    #[must_use]
    pub fn steps_scheduled(&self) -> u32 {
        self.steps
    }

    /// The input image, if any.
    #[must_use]
    pub fn input_image(&self) -> Option<&InputImage> {
        self.images.input.as_ref()
    }

    /// What is repainted of the input image, in its size: white is. `None`: all of it.
    #[must_use]
    pub fn mask(&self) -> Option<&Arc<RgbImage>> {
        self.images.mask.as_ref()
    }

    /// What the result is put back into, if only a region of an image is generated.
    #[must_use]
    pub fn overlay(&self) -> Option<&Overlay> {
        self.images.overlay.as_ref()
    }

    /// The control images, in the order of the request.
    #[must_use]
    pub fn controls(&self) -> &[ControlImage] {
        &self.images.controls
    }

    /// The reference images, in the order of the request.
    #[must_use]
    pub fn references(&self) -> &[Arc<RgbImage>] {
        &self.images.references
    }

    /// The style images, in the order of the request.
    #[must_use]
    pub fn styles(&self) -> &[StyleImage] {
        &self.images.styles
    }

    /// Every image as it was given, or as it is in the size of its role: what to keep to generate the same image again.
    pub fn given_images(&self) -> impl Iterator<Item = (ImageRole, &Arc<RgbImage>, ImageOptions)> {
        self.images.given()
    }

    /// The lossy cache between its steps, if any.
    #[must_use]
    pub fn step_cache(&self) -> Option<StepCache> {
        self.step_cache
    }

    /// The adapters, in the order of the request.
    #[must_use]
    pub fn loras(&self) -> &[AdapterUse] {
        &self.loras
    }

    /// Value of the guidance embedding.
    #[must_use]
    pub fn guidance(&self) -> f64 {
        self.guidance
    }

    /// Seed of the noise.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Index in a batch that shares the seed; 0 for a single image.
    #[must_use]
    pub fn image_index(&self) -> u32 {
        self.image_index
    }

    /// Images in the batch that shares the seed; 1 for a single image.
    #[must_use]
    pub fn batch_size(&self) -> u32 {
        self.batch_size
    }

    /// T5 tokens.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Tokens of style images, behind those of T5.
    #[must_use]
    pub fn style_tokens(&self) -> usize {
        self.images.style_tokens
    }

    /// Tokens of reference images, behind those of the image.
    #[must_use]
    pub fn reference_tokens(&self) -> usize {
        let tokens = |side: u32| (side / PIXELS_PER_TOKEN_SIDE) as usize;
        self.images.references.iter().map(|image| tokens(image.width()) * tokens(image.height())).sum()
    }

    /// Image tokens (16×16 pixel patches).
    #[must_use]
    pub fn image_tokens(&self) -> usize {
        (self.width / PIXELS_PER_TOKEN_SIDE) as usize * (self.height / PIXELS_PER_TOKEN_SIDE) as usize
    }

    /// Times the model runs in one denoising step: twice with a negative prompt.
    #[must_use]
    pub fn passes(&self) -> usize {
        if self.negative.is_some() { 2 } else { 1 }
    }

    /// Tokens of one denoising step, over all passes.
    #[must_use]
    pub fn step_tokens(&self) -> usize {
        let text = self.sequence_length + self.style_tokens();
        self.passes() * (self.image_tokens() + self.reference_tokens() + text)
    }
}

#[cfg(test)]
mod tests;
