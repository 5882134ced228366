//! A request that is known to be valid. [`GenerateParams`] is what somebody asked for; [`GenerateSpec`] can only be
//! made from it by checking it against the model's card, so nothing behind the door checks again.

use crate::domain::ids::ModelId;
use crate::domain::model::ModelCard;

/// Largest seed: the largest integer that every JSON reader keeps exactly (2^53 − 1).
pub const SEED_MAX: u64 = (1 << 53) - 1;

/// A seed for a request that brings none, from the operating system.
///
/// # Errors
/// When the system gives no random numbers.
pub fn draw_seed() -> Result<u64, getrandom::Error> {
    Ok(getrandom::u64()? & SEED_MAX)
}

/// Pixels along one side of an image token: the VAE's 8 times the patch's 2.
pub const PIXELS_PER_TOKEN_SIDE: u32 = 16;

/// The longest T5 sequence FLUX was trained with, in tokens.
pub const SEQUENCE_LENGTH_MAX: usize = 512;

/// One rule a request breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field as the wire names it.
    pub field: String,
    /// What is wrong, with the numbers of the rule, in words for the client.
    pub reason: String,
}

impl FieldError {
    /// A broken rule of one field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// What was asked for, unchecked. `None` means the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateParams {
    /// What to draw.
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
    /// How many input pictures came along.
    pub input_images: usize,
}

/// True classifier-free guidance: a second pass with another prompt, and how far to move away from it.
#[derive(Debug, Clone, PartialEq)]
pub struct NegativeGuidance {
    /// The prompt of the second pass.
    pub prompt: String,
    /// `uncond + scale × (cond − uncond)`; above 1.
    pub scale: f64,
}

/// A picture to draw. Every value has been checked against the model's card.
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
    sequence_length: usize,
}

impl GenerateSpec {
    /// Checks `params` against `card` and fills in its defaults.
    ///
    /// # Errors
    /// Every broken rule, not only the first.
    pub fn new(params: GenerateParams, card: &ModelCard) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        check_prompts(&params, card, &mut errors);
        let width = params.width.unwrap_or(card.defaults.width);
        let height = params.height.unwrap_or(card.defaults.height);
        check_size(width, height, card, &mut errors);
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
        let images = card.input_images_min..=card.input_images_max;
        if !images.contains(&params.input_images) {
            let reason = format!(
                "this model takes from {} to {} input images, not {}",
                images.start(),
                images.end(),
                params.input_images
            );
            errors.push(FieldError::new("input_images_base64", reason));
        }
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
            sequence_length,
        })
    }

    /// The same picture as the `index`-th of a batch that shares one generator, as torch draws the noise of
    /// `num_images_per_prompt` pictures: the noise of the first `index` pictures is skipped.
    #[must_use]
    pub fn at_index(mut self, index: u32) -> Self {
        self.image_index = index;
        self
    }

    /// The model that draws it.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// What CLIP reads.
    #[must_use]
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// What T5 reads: `prompt_2`, or else the prompt.
    #[must_use]
    pub fn t5_prompt(&self) -> &str {
        self.prompt_2.as_deref().unwrap_or(&self.prompt)
    }

    /// The second pass, where there is one.
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

    /// What the picture costs: pixels times denoising steps.
    #[must_use]
    pub fn pixel_steps(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * u64::from(self.steps)
    }

    /// Denoising steps.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.steps
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

    /// Place in a batch that shares the seed; 0 for a single picture.
    #[must_use]
    pub fn image_index(&self) -> u32 {
        self.image_index
    }

    /// T5 tokens.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
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

    /// Tokens that one denoising step of this picture puts through the model, over both passes where there are two.
    #[must_use]
    pub fn step_tokens(&self) -> usize {
        self.passes() * (self.image_tokens() + self.sequence_length)
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

fn check_size(width: u32, height: u32, card: &ModelCard, errors: &mut Vec<FieldError>) {
    let limits = &card.limits;
    let multiple = limits.size_multiple_of;
    let sides = [
        ("width", width, limits.width_min, limits.width_max),
        ("height", height, limits.height_min, limits.height_max),
    ];
    let mut sides_fit = true;
    for (field, value, min, max) in sides {
        if !(min..=max).contains(&value) || !value.is_multiple_of(multiple) {
            sides_fit = false;
            let reason = format!("must be a multiple of {multiple} from {min} to {max}, not {value}");
            errors.push(FieldError::new(field, reason));
        }
    }
    let pixels = u64::from(width) * u64::from(height);
    if sides_fit && pixels > u64::from(limits.pixels_max) {
        let reason = format!("width × height must be at most {} pixels, not {pixels}", limits.pixels_max);
        errors.push(FieldError::new("width", reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::{ParameterDefaults, ParameterLimits};

    fn card() -> ModelCard {
        ModelCard {
            id: ModelId::new("test/model"),
            notice: None,
            defaults: ParameterDefaults { width: 512, height: 512, steps: 30, guidance: 3.5 },
            limits: ParameterLimits {
                width_min: 64,
                width_max: 2048,
                height_min: 64,
                height_max: 2048,
                size_multiple_of: 16,
                pixels_max: 4_194_304,
                steps_min: 1,
                steps_max: 100,
                guidance_min: 0.0,
                guidance_max: 30.0,
            },
            input_images_min: 0,
            input_images_max: 0,
            prompt_chars_max: 2048,
            sequence_length: 512,
            true_cfg_scale: 4.0,
        }
    }

    fn fields(params: GenerateParams) -> Vec<String> {
        match GenerateSpec::new(params, &card()) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| error.field).collect(),
        }
    }

    fn params() -> GenerateParams {
        GenerateParams { prompt: "a fox".into(), ..GenerateParams::default() }
    }

    #[test]
    fn defaults_come_from_the_card() {
        let spec = GenerateSpec::new(params(), &card()).expect("valid");
        assert_eq!((spec.width(), spec.height(), spec.steps()), (512, 512, 30));
        assert_eq!(spec.image_tokens(), 1024);
        assert_eq!(spec.step_tokens(), 1536);
    }

    #[test]
    fn each_bad_field_is_named() {
        let cases = [
            (GenerateParams { width: Some(100), ..params() }, "width"),
            (GenerateParams { height: Some(48), ..params() }, "height"),
            (GenerateParams { height: Some(2064), ..params() }, "height"),
            (GenerateParams { steps: Some(0), ..params() }, "steps"),
            (GenerateParams { steps: Some(101), ..params() }, "steps"),
            (GenerateParams { guidance: Some(-0.1), ..params() }, "guidance"),
            (GenerateParams { guidance: Some(f64::NAN), ..params() }, "guidance"),
            (GenerateParams { seed: SEED_MAX + 1, ..params() }, "seed"),
            (GenerateParams { input_images: 1, ..params() }, "input_images_base64"),
            (GenerateParams { prompt: "x".repeat(2049), ..params() }, "prompt"),
            (GenerateParams { negative_prompt: Some("x".repeat(2049)), ..params() }, "negative_prompt"),
            (GenerateParams { sequence_length: Some(513), ..params() }, "max_sequence_length"),
        ];
        for (params, field) in cases {
            assert_eq!(fields(params), [field]);
        }
    }

    #[test]
    fn all_broken_rules_are_reported_at_once() {
        let params = GenerateParams { width: Some(1), steps: Some(0), ..params() };
        assert_eq!(fields(params), ["width", "steps"]);
    }

    #[test]
    fn a_negative_prompt_doubles_the_work() {
        let params = GenerateParams { negative_prompt: Some(String::new()), ..params() };
        let spec = GenerateSpec::new(params, &card()).expect("valid");
        assert_eq!(spec.step_tokens(), 2 * 1536);
    }

    #[test]
    fn an_empty_prompt_2_falls_back_to_the_prompt() {
        let params = GenerateParams { prompt_2: Some(String::new()), ..params() };
        let spec = GenerateSpec::new(params, &card()).expect("valid");
        assert_eq!(spec.t5_prompt(), "a fox");
    }
}
