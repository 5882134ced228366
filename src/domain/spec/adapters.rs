//! The rules of a request's adapters.

use super::FieldError;
use crate::domain::adapter::{ADAPTERS_MAX, AdapterUse, LORAS, SCALE_MAX};

/// What is wrong with the number of adapters, or with their strengths. One may be there several times: the strengths add up.
#[must_use]
pub fn lora_errors(loras: &[AdapterUse]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if loras.len() > ADAPTERS_MAX {
        errors.push(FieldError::new(LORAS, format!("must be at most {ADAPTERS_MAX} adapters, not {}", loras.len())));
    }
    for (place, lora) in loras.iter().enumerate() {
        // Not a number is refused, too.
        let is_allowed = lora.scale.abs() <= SCALE_MAX;
        if !is_allowed {
            let reason = format!("must be from -{SCALE_MAX} to {SCALE_MAX}, not {}", lora.scale);
            errors.push(FieldError::new(format!("{LORAS}[{place}].scale"), reason));
        }
    }
    errors
}
