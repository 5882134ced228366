//! The LoRAs that a request asks for: in its field, and in its prompt where the operator allows that. All mistakes are collected,
//! to be told together with those of the other fields.

use std::fmt;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};

use crate::domain::adapter::{ADAPTERS_MAX, AdapterUse, LORAS, SCALE_MAX};
use crate::domain::limits::KeyLimits;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::json::Fields;
use crate::http::openapi::schema::{ObjectSchema, number, text};
use crate::http::state::HttpState;
use crate::loras::{FoundLora, NAME_CHARS_MAX};

const ABOUT: &str = "LoRAs (adapters) that change the image, added up in this order. The worker's are listed by \
                     `GET /v1/inference/loras`.";
const ID: &str = "The LoRA's id, or its name.";
const SCALE: &str = "How strongly it acts: 0 changes nothing, a negative strength moves the other way. Defaults to 1.";

const PROMPT: &str = "prompt";
/// The beginning and the end of a LoRA in a prompt.
const TAG: (&str, char) = ("<lora:", '>');

/// A LoRA that is asked for.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    place: Place,
    /// Its id or name.
    name: String,
    scale: f64,
}

/// Where a request names a LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the field, at this position.
    Field(usize),
    Prompt,
}

impl Wanted {
    /// A mistake in the field `field` of the LoRA, or in the prompt.
    fn error(&self, field: &str, reason: &dyn fmt::Display) -> FieldError {
        let name: String = self.name.chars().take(NAME_CHARS_MAX).collect();
        match self.place {
            Place::Field(at) => FieldError::new(format!("{LORAS}[{at}].{field}"), reason.to_string()),
            Place::Prompt => FieldError::new(PROMPT, format!("`{}{name}{}`: {reason}", TAG.0, TAG.1)),
        }
    }

    fn forbidden(&self) -> FieldError {
        self.error("id", &"is not one of the key's LoRAs")
    }
}

/// The LoRAs that a request asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::http) struct WantedLoras(Vec<Wanted>);

impl WantedLoras {
    /// Those of the field.
    pub(in crate::http) fn read(fields: &mut Fields) -> Self {
        let wanted = fields.objects(LORAS, |fields| {
            let (name, scale) = (fields.required_text("id"), fields.number("scale"));
            Some((name?, scale.unwrap_or(1.0)))
        });
        let wanted = wanted.into_iter().enumerate();
        Self(wanted.map(|(at, (name, scale))| Wanted { place: Place::Field(at), name, scale }).collect())
    }

    /// Adds those of the prompt, where the operator allows that, and removes them from it.
    pub(in crate::http) fn read_prompt(
        &mut self,
        state: &HttpState,
        prompt: &mut String,
        errors: &mut Vec<FieldError>,
    ) {
        if !state.settings.reads_loras_in_prompt {
            return;
        }
        match without_tags(prompt) {
            Ok((text, wanted)) if !wanted.is_empty() => {
                if text.is_empty() {
                    errors.push(FieldError::new(PROMPT, "must not be empty beside its LoRAs"));
                }
                *prompt = text;
                self.0.extend(wanted);
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }

    /// Finds them in the catalog, for a key with these limits. It is not told which others there are.
    pub(in crate::http) async fn find(&self, state: &HttpState, limits: &KeyLimits) -> Result<FoundLoras, ApiError> {
        let mut loras = FoundLoras::default();
        if self.0.len() > ADAPTERS_MAX {
            let reason = format!("must be at most {ADAPTERS_MAX} LoRAs, not {}", self.0.len());
            loras.errors.push(FieldError::new(LORAS, reason));
            return Ok(loras);
        }
        for wanted in &self.0 {
            let is_allowed = wanted.scale.abs() <= SCALE_MAX;
            if !is_allowed {
                let reason = format!("must be from -{SCALE_MAX} to {SCALE_MAX}, not {}", wanted.scale);
                loras.errors.push(wanted.error("scale", &reason));
            }
            match state.loras.find(&wanted.name).await? {
                Some(found) if !limits.allows_lora(&found.id, &found.name) => loras.forbidden.push(wanted.forbidden()),
                Some(found) if is_allowed => loras.found.push((wanted.clone(), found)),
                Some(_) => {}
                None if limits.may_miss_lora(&wanted.name) => {
                    loras.missing.push(wanted.error("id", &"there is no such LoRA"));
                }
                None => loras.forbidden.push(wanted.forbidden()),
            }
        }
        Ok(loras)
    }

    /// The schema of the field.
    pub(in crate::http) fn schema() -> RefOr<Schema> {
        let scale = number().minimum(Some(-SCALE_MAX)).maximum(Some(SCALE_MAX)).description(Some(SCALE));
        let lora = ObjectSchema::new("A LoRA and its strength.")
            .required("id", text().description(Some(ID)))
            .optional("scale", scale);
        let lora: RefOr<Schema> = lora.into();
        ArrayBuilder::new().items(lora).max_items(Some(ADAPTERS_MAX)).description(Some(ABOUT)).into()
    }
}

/// The LoRAs of a request that are there, and what is wrong with the others.
#[derive(Debug, Default)]
pub(in crate::http) struct FoundLoras {
    found: Vec<(Wanted, FoundLora)>,
    errors: Vec<FieldError>,
    forbidden: Vec<FieldError>,
    missing: Vec<FieldError>,
}

impl FoundLoras {
    /// Their uses, for the engine.
    pub(in crate::http) fn uses(&self) -> Vec<AdapterUse> {
        self.found.iter().map(|(wanted, found)| found.at(wanted.scale)).collect()
    }

    /// The outcome of the check of all other fields, unless something is wrong with a LoRA. Of several mistakes, all are told. If
    /// the only ones are LoRAs that the key may not use, or that are not there, the code says so.
    pub(in crate::http) fn settle<T>(
        &self,
        outcome: Result<T, Vec<FieldError>>,
        mut errors: Vec<FieldError>,
    ) -> Result<T, ApiError> {
        let valid = match outcome {
            Ok(valid) => Some(valid),
            Err(broken) => {
                errors.extend(broken);
                None
            }
        };
        errors.extend(self.errors.iter().cloned());
        match valid {
            Some(valid) if errors.is_empty() && self.forbidden.is_empty() && self.missing.is_empty() => Ok(valid),
            _ if errors.is_empty() && !self.forbidden.is_empty() => {
                Err(ApiError::new(ErrorCode::LoraForbidden).with_errors(self.forbidden.clone()))
            }
            _ if errors.is_empty() => {
                let detail = "`GET /v1/inference/loras` lists those of this worker";
                Err(ApiError::new(ErrorCode::LoraNotFound).with_detail(detail).with_errors(self.missing.clone()))
            }
            _ => {
                errors.extend(self.forbidden.iter().chain(&self.missing).cloned());
                Err(ApiError::invalid(errors))
            }
        }
    }

    /// Refuses LoRAs that a key may no longer use: its limits may have changed since they were found.
    pub(in crate::http) fn check_allowed(&self, limits: &KeyLimits) -> Result<(), ApiError> {
        let forbidden = self.found.iter().filter(|(_, found)| !limits.allows_lora(&found.id, &found.name));
        let errors: Vec<FieldError> = forbidden.map(|(wanted, _)| wanted.forbidden()).collect();
        if errors.is_empty() { Ok(()) } else { Err(ApiError::new(ErrorCode::LoraForbidden).with_errors(errors)) }
    }
}

/// The prompt without `<lora:NAME:SCALE>` and `<lora:NAME>`, and the LoRAs that these ask for.
fn without_tags(prompt: &str) -> Result<(String, Vec<Wanted>), FieldError> {
    let (mut text, mut wanted, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some((before, after)) = rest.split_once(TAG.0) {
        let Some((tag, after)) = after.split_once(TAG.1) else { break };
        let (name, scale) = tag.split_once(':').unwrap_or((tag, "1"));
        let lora = Wanted { place: Place::Prompt, name: name.trim().to_owned(), scale: 1.0 };
        let Ok(scale) = scale.trim().parse() else {
            let example = format!("must have a number as its strength, like `{}NAME:0.8{}`", TAG.0, TAG.1);
            return Err(lora.error("scale", &example));
        };
        wanted.push(Wanted { scale, ..lora });
        text.push_str(before);
        // The blanks around a tag become one.
        rest = if text.ends_with(' ') { after.trim_start_matches(' ') } else { after };
    }
    text.push_str(rest);
    Ok((text.trim().to_owned(), wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_out_of_a_prompt() {
        let read = |prompt: &str| {
            let (text, wanted) = without_tags(prompt).expect("valid");
            (text, wanted.into_iter().map(|wanted| (wanted.name, wanted.scale)).collect::<Vec<_>>())
        };
        let lora = |name: &str, scale: f64| (name.to_owned(), scale);
        for (prompt, text, loras) in [
            ("a fox", "a fox", vec![]),
            ("a fox <lora:pen:0.8> in snow", "a fox in snow", vec![lora("pen", 0.8)]),
            ("<lora:pen:-1><lora: ink v2 :.5> a fox", "a fox", vec![lora("pen", -1.0), lora("ink v2", 0.5)]),
            ("a fox<lora:pen>", "a fox", vec![lora("pen", 1.0)]),
            ("<lora:pen:2>", "", vec![lora("pen", 2.0)]),
            ("a <lora:pen fox", "a <lora:pen fox", vec![]),
            ("a > b < c", "a > b < c", vec![]),
        ] {
            assert_eq!(read(prompt), (text.to_owned(), loras), "{prompt}");
        }
        let error = without_tags("a <lora:pen:strong> fox").expect_err("no number");
        assert_eq!(error.field, "prompt");
        assert!(error.reason.contains("`<lora:pen>`: must have a number"), "{}", error.reason);
        assert!(without_tags("<lora:pen:1:1>").is_err());
    }
}
