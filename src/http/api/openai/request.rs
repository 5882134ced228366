//! The body of `POST /v1/images/generations`. OpenAI's options that this worker does not support are refused by name,
//! unless they only state the default behavior.

use std::fmt::Display;
use std::iter;
use std::str::FromStr;

use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::adapter::LORAS;
use crate::domain::format::OutputFormat;
use crate::domain::ids::ModelId;
use crate::domain::limits::KeyLimits;
use crate::domain::model::ModelCard;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, SEED_MAX, random_seed};
use crate::domain::step_cache::{CACHE, CACHE_THRESHOLD};
use crate::http::api::wanted_cache;
use crate::http::api::wanted_loras::{FoundLoras, WantedLoras};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::json::{self, Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, integer, number, one_of, text};
use crate::http::state::HttpState;

/// Maximum images of one request.
const IMAGES_MAX: u32 = 10;
const ABOUT: &str = "Images to generate, with the fields of OpenAI's API and some of our own. The model's \
                     `parameter_limits` have the limits of the fields (`GET /v1/inference/models`).";
const AUTO: &str = "auto";

/// Options without a choice here, and their accepted values, which state the default behavior.
const FIXED: [(&str, &[&str]); 4] = [
    ("quality", &[AUTO, "standard"]),
    // No image of ours is transparent.
    ("background", &[AUTO, "opaque"]),
    ("moderation", &[AUTO]),
    ("style", &[AUTO]),
];

/// How an image is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ImageForm {
    /// In the answer.
    #[default]
    Base64,
    /// As a signed link.
    Link,
}

impl ImageForm {
    const ALL: [Self; 2] = [Self::Base64, Self::Link];

    fn as_str(self) -> &'static str {
        match self {
            Self::Base64 => "b64_json",
            Self::Link => "url",
        }
    }
}

impl FromStr for ImageForm {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|form| form.as_str() == word).ok_or("must be `b64_json` or `url`")
    }
}

/// Width and height; `None` for the model's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Size(Option<(u32, u32)>);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == AUTO {
            return Ok(Self(None));
        }
        // `parse` alone would accept a sign.
        let side = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        sides.map(|sides| Self(Some(sides))).ok_or("must be `auto`, or width and height in pixels like `512x512`")
    }
}

/// The parsed request.
pub(in crate::http) struct GenerateImages {
    model: ModelId,
    params: GenerateParams,
    images: u32,
    loras: WantedLoras,
    seed: Option<u64>,
    pub(super) output_format: OutputFormat,
    pub(super) form: ImageForm,
}

impl FromFields for GenerateImages {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let prompt = fields.required_text("prompt");
        if prompt.as_ref().is_some_and(String::is_empty) {
            fields.refuse("prompt", "must not be empty");
        }
        let model = fields.required_text("model");
        let images = fields.small_number("n").unwrap_or(1);
        if !(1..=IMAGES_MAX).contains(&images) {
            fields.refuse("n", format!("must be from 1 to {IMAGES_MAX}"));
        }
        let Size(sides) = chosen(fields, "size");
        let params = GenerateParams {
            negative_prompt: fields.text("negative_prompt"),
            width: sides.map(|(width, _)| width),
            height: sides.map(|(_, height)| height),
            steps: fields.small_number("steps"),
            guidance: fields.number("guidance"),
            step_cache: wanted_cache::read(fields),
            ..GenerateParams::default()
        };
        let loras = WantedLoras::read(fields);
        let seed = fields.whole_number("seed");
        let (output_format, form) = (chosen(fields, "output_format"), chosen(fields, "response_format"));
        // The client's end user. It has no effect and is not stored.
        fields.text("user");
        fields.text("safety_identifier");
        refuse_choices(fields);
        let params = GenerateParams { prompt: prompt?, ..params };
        Some(Self { model: ModelId::new(model?), params, images, loras, seed, output_format, form })
    }

    // OpenAI's clients may send ignored fields of any length.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max
    }
}

/// A field with a fixed set of values.
fn chosen<T: FromStr<Err: Display> + Default>(fields: &mut Fields, field: &str) -> T {
    let Some(word) = fields.text(field) else { return T::default() };
    word.parse().unwrap_or_else(|error: T::Err| {
        fields.refuse(field, error.to_string());
        T::default()
    })
}

fn refuse_choices(fields: &mut Fields) {
    for (field, words) in FIXED {
        if fields.text(field).is_some_and(|word| !words.contains(&word.as_str())) {
            fields.refuse(field, format!("is not supported: leave it out, or send `{}`", words.join("` or `")));
        }
    }
    let mut refuse = |field: &str, usual: Option<Value>, reason: &str| {
        let value = fields.given(field).filter(|value| !value.is_null());
        let is_usual = value == usual || usual.as_ref().is_some_and(|usual| is_same_number(usual, value.as_ref()));
        if value.is_some() && !is_usual {
            fields.refuse(field, reason);
        }
    };
    refuse("stream", Some(false.into()), "images are not streamed: leave it out, or send `false`");
    refuse("partial_images", Some(0.into()), "images are not streamed: leave it out, or send 0");
    refuse("output_compression", None, "is not supported: leave it out");
}

/// Whether both are the same whole number, in any notation.
fn is_same_number(usual: &Value, given: Option<&Value>) -> bool {
    json::integer(usual).is_some_and(|usual| given.and_then(json::integer) == Some(usual))
}

impl ToSchema for GenerateImages {}

impl PartialSchema for GenerateImages {
    fn schema() -> RefOr<Schema> {
        let formats = one_of(OutputFormat::ALL.map(OutputFormat::as_str));
        let forms = one_of(ImageForm::ALL.map(ImageForm::as_str));
        let user = "Accepted for clients that send it. Not stored, and without effect.";
        let never = ObjectBuilder::new().schema_type(Type::Null);
        let object = ObjectSchema::new(ABOUT)
            .required("prompt", text().min_length(Some(1)).description(Some("What to generate.")))
            .required("model", text().description(Some("The model's id.")))
            .optional(
                "n",
                integer(1).maximum(Some(IMAGES_MAX)).description(Some("The number of images. Defaults to 1.")),
            )
            .optional(
                "size",
                text()
                    .pattern(Some("^(auto|[0-9]+x[0-9]+)$"))
                    .description(Some("`WIDTHxHEIGHT` in pixels, or `auto` for the model's defaults.")),
            )
            .optional(
                "response_format",
                forms.description(Some("Whether the answer contains the image, or a link to it that needs no key.")),
            )
            .optional("output_format", formats.description(Some("The file's format. Defaults to png.")))
            .optional("negative_prompt", text().description(Some("What to avoid. Each step then takes two passes.")))
            .optional("steps", integer(1).description(Some("Denoising steps.")))
            .optional("guidance", number().description(Some("How closely to follow the prompt.")))
            .optional(
                "seed",
                integer(0).maximum(Some(SEED_MAX)).description(Some(
                    "The seed of the first image; each further image has the next one. Random by default.",
                )),
            )
            .optional(LORAS, WantedLoras::schema())
            .optional(CACHE, wanted_cache::schema())
            .optional(CACHE_THRESHOLD, wanted_cache::threshold_schema())
            .optional("user", text().description(Some(user)))
            .optional("safety_identifier", text().description(Some(user)))
            .optional("stream", ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([false])))
            .optional("partial_images", integer(0).maximum(Some(0)))
            .optional("output_compression", never.description(Some("Not supported.")));
        let fixed = |object: ObjectSchema, (field, words): (&str, &'static [&'static str])| {
            object.optional(field, one_of(words.iter().copied()).description(Some("Not supported.")))
        };
        FIXED.into_iter().fold(object, fixed).into()
    }
}

impl GenerateImages {
    /// The model it asks for.
    pub(super) fn model(&self) -> &ModelId {
        &self.model
    }

    /// One valid request for each image, which differ only in their seeds, of a caller with these limits; and their LoRAs.
    pub(super) async fn specs(
        &self,
        state: &HttpState,
        card: &ModelCard,
        limits: &KeyLimits,
    ) -> Result<(Vec<GenerateSpec>, FoundLoras), ApiError> {
        let first = match self.seed {
            Some(seed) => seed,
            None => random_seed().map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?,
        };
        let (mut params, mut loras, mut errors) = (self.params.clone(), self.loras.clone(), Vec::new());
        errors.extend(wanted_cache::refusal(params.step_cache, &state.settings));
        loras.read_prompt(state, &mut params.prompt, &mut errors);
        let loras = loras.find(state, limits).await?;
        params.loras = loras.uses();
        let spec = |seed| GenerateSpec::new(GenerateParams { seed, ..params.clone() }, card);
        let specs: Result<Vec<_>, Vec<_>> = seeds(first).take(self.images as usize).map(spec).collect();
        let specs = specs.map_err(|errors| errors.into_iter().map(as_size_error).collect());
        Ok((loras.settle(specs, errors)?, loras))
    }
}

/// The seeds of the images of one request. After the largest comes 0.
fn seeds(first: u64) -> impl Iterator<Item = u64> {
    iter::successors(Some(first), |seed| Some(if *seed >= SEED_MAX { 0 } else { seed + 1 }))
}

/// Width and height are one field here.
fn as_size_error(error: FieldError) -> FieldError {
    let FieldError { field, reason } = error;
    if !["width", "height"].contains(&field.as_str()) {
        return FieldError { field, reason };
    }
    let reason = if reason.starts_with("must") { format!("{field} {reason}") } else { reason };
    FieldError::new("size", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_strictly() {
        assert_eq!("auto".parse(), Ok(Size(None)));
        assert_eq!("64x128".parse(), Ok(Size(Some((64, 128)))));
        for text in ["", "x", "64", "64x", "x64", "64X64", "+64x64", "64x-64", " 64x64", "64x64x64", "99999999999x64"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn after_the_largest_seed_comes_the_smallest() {
        let taken = |first| seeds(first).take(3).collect::<Vec<_>>();
        assert_eq!(taken(7), [7, 8, 9]);
        assert_eq!(taken(SEED_MAX - 1), [SEED_MAX - 1, SEED_MAX, 0]);
    }
}
