//! A validated request. [`GenerateParams`] is what was asked for; [`GenerateSpec`] can only be made from it by checking
//! it against the model's card, so no other code checks again.

mod adapters;
mod images;

use std::sync::Arc;

use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{ControlImage, GivenImage, ImageOptions, ImageRole, StyleImage, kontext_size};
use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;
use crate::domain::model::{ModelCard, ParameterLimits};
use crate::domain::overlay::Overlay;
use crate::domain::step_cache::{CACHE_THRESHOLD, StepCache, THRESHOLD_MAX};
use crate::domain::usage::ImageCost;

pub use adapters::lora_errors;
use images::CheckedImages;
pub use images::{image_count_errors, option_errors};

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

/// Unchecked parameters of a request. `None` means the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateParams {
    /// What to generate.
    pub prompt: String,
    /// Given to T5 instead of `prompt`, which then only CLIP reads. Empty counts as absent.
    pub prompt_2: Option<String>,
    /// What to steer away from; turns on true classifier-free guidance (two passes per step).
    pub negative_prompt: Option<String>,
    /// Strength of true classifier-free guidance; above 1.
    pub true_cfg_scale: Option<f64>,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Value fed to the guidance embedding.
    pub guidance: Option<f64>,
    /// Seed of the noise.
    pub seed: u64,
    /// T5 tokens, at most [`SEQUENCE_LENGTH_MAX`].
    pub sequence_length: Option<usize>,
    /// Its images, of any size until the request is checked.
    pub images: Vec<GivenImage>,
    /// Only the region around the mask is generated, with this many pixels around it, and put back into the input image.
    pub mask_padding: Option<u32>,
    /// Where that region is put back. Made of the images and `mask_padding`, before the request is checked.
    pub overlay: Option<Overlay>,
    /// A lossy cache between its steps.
    pub step_cache: Option<StepCache>,
    /// How far to depart from the input image; above 0, at most 1.
    pub strength: Option<f64>,
    /// Adapters, at most [`ADAPTERS_MAX`](crate::domain::adapter::ADAPTERS_MAX).
    pub loras: Vec<AdapterUse>,
}

impl GenerateParams {
    /// The first image of a role.
    #[must_use]
    pub fn image(&self, role: ImageRole) -> Option<&GivenImage> {
        self.images.iter().find(|given| given.role == role)
    }

    /// How many images of a role there are.
    #[must_use]
    pub fn count(&self, role: ImageRole) -> usize {
        self.images.iter().filter(|given| given.role == role).count()
    }

    /// Fills in missing width and height: the model's, or as near to those of the input, control or reference image as the
    /// model's limits allow. If one side is given, the other follows the image's proportions.
    pub fn settle_size(&mut self, card: &ModelCard) {
        let given = (self.width, self.height);
        let sides = |role| self.image(role).map(|given| (given.image.width(), given.image.height()));
        let changed = sides(ImageRole::Input).or_else(|| sides(ImageRole::Control));
        let (width, height) = match (changed, sides(ImageRole::Reference)) {
            (None, Some(image)) if given == (None, None) => card.limits.size_like(kontext_size(image), given),
            (Some(image), _) | (None, Some(image)) => card.limits.size_like(image, given),
            (None, None) => (card.defaults.width, card.defaults.height),
        };
        self.width.get_or_insert(width);
        self.height.get_or_insert(height);
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

fn check_prompts(params: &GenerateParams, card: &ModelCard, errors: &mut Vec<FieldError>) {
    let max = card.prompt_chars_max;
    let prompts = [
        ("prompt", Some(&params.prompt)),
        ("prompt_2", params.prompt_2.as_ref()),
        ("negative_prompt", params.negative_prompt.as_ref()),
    ];
    for (field, text) in prompts {
        let chars = text.map_or(0, |text| text.chars().count());
        if chars > max {
            errors.push(FieldError::new(field, format!("must be at most {max} characters, not {chars}")));
        }
    }
}

fn cache_error(cache: Option<StepCache>) -> Option<FieldError> {
    let threshold = cache?.threshold;
    let is_allowed = threshold > 0.0 && threshold <= THRESHOLD_MAX;
    let reason = || format!("must be above 0 and at most {THRESHOLD_MAX}, not {threshold}");
    (!is_allowed).then(|| FieldError::new(CACHE_THRESHOLD, reason()))
}

/// What is wrong with an image's size, if anything.
#[must_use]
pub fn size_errors((width, height): (u32, u32), limits: &ParameterLimits) -> Vec<FieldError> {
    let multiple = limits.size_multiple_of;
    let sides = [
        ("width", width, limits.width_min, limits.width_max),
        ("height", height, limits.height_min, limits.height_max),
    ];
    let mut errors = Vec::new();
    for (field, value, min, max) in sides {
        if !(min..=max).contains(&value) || !value.is_multiple_of(multiple) {
            let reason = format!("must be a multiple of {multiple} from {min} to {max}, not {value}");
            errors.push(FieldError::new(field, reason));
        }
    }
    let pixels = u64::from(width) * u64::from(height);
    if errors.is_empty() && pixels > u64::from(limits.pixels_max) {
        let reason = format!("width × height must be at most {} pixels, not {pixels}", limits.pixels_max);
        errors.push(FieldError::new("width", reason));
    }
    errors
}

/// What is wrong with a strength, if anything.
#[must_use]
pub fn strength_error(strength: Option<f64>, steps: u32, input_images: usize) -> Option<FieldError> {
    let strength = strength?;
    let refuse = |reason: String| Some(FieldError::new("strength", reason));
    if input_images == 0 {
        return refuse("needs an input image".to_owned());
    }
    if !(strength > 0.0 && strength <= 1.0) {
        return refuse(format!("must be above 0 and at most 1, not {strength}"));
    }
    if steps > 0 && steps_done(steps, Some(strength)) == 0 {
        return refuse(format!("leaves none of {steps} steps to do, so it must be larger"));
    }
    None
}

/// The steps that are run with an input image of this strength (`FluxImg2ImgPipeline.get_timesteps` of diffusers).
#[must_use]
pub fn steps_done(steps: u32, strength: Option<f64>) -> u32 {
    let Some(strength) = strength else { return steps };
    let all = f64::from(steps);
    let skipped = (all - (all * strength).min(all)) as u32;
    steps - skipped
}

#[cfg(test)]
mod tests;
