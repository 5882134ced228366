//! The rules of a request's other fields: prompts, size, strength, cache.

use super::{FieldError, GenerateParams};
use crate::domain::model::{ModelCard, ParameterLimits};
use crate::domain::step_cache::{CACHE_THRESHOLD, StepCache, THRESHOLD_MAX};

pub(super) fn check_prompts(params: &GenerateParams, card: &ModelCard, errors: &mut Vec<FieldError>) {
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

pub(super) fn cache_error(cache: Option<StepCache>) -> Option<FieldError> {
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
