//! The body of `POST /v1/images/generations`, and what it has in common with those of the routes that take images. OpenAI's
//! options that this worker does not support are refused by name, unless they only state the default behavior.

use std::fmt::Display;
use std::str::FromStr;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::streaming::{Kind, Streaming};
use crate::domain::adapter::LORAS;
use crate::domain::conditioning::IMAGES;
use crate::domain::format::OutputFormat;
use crate::domain::ids::ModelId;
use crate::domain::limits::KeyLimits;
use crate::domain::spec::{FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES, SEED_MAX, random_seed};
use crate::domain::step_cache::{CACHE, CACHE_THRESHOLD};
use crate::http::api::wanted_cache;
use crate::http::api::wanted_loras::{FoundLoras, WantedLoras};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::json::{self, Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, integer, number, one_of, text};
use crate::http::state::HttpState;

/// Maximum images of one answer.
const IMAGES_MAX: u32 = 10;
const ABOUT: &str = "Images to generate, with the fields of OpenAI's API and some of our own. The model's \
                     `parameter_limits` have the limits of the fields (`GET /v1/inference/models`).";
const AUTO: &str = "auto";

const WITHOUT_EFFECT: &str = "Accepted at the values that clients send by themselves, and without effect.";

/// The field of input images.
pub(super) const IMAGE: &str = "image";

/// Options of OpenAI's models that none of ours has, with the values that its clients and gateways send by themselves: they ask
/// for nothing that this worker would have to refuse. What they choose there, `steps` and the prompt choose here.
const FIXED: [(&str, &[&str]); 4] = [
    ("quality", &[AUTO, "standard", "hd", "low", "medium", "high"]),
    // No image of ours is transparent.
    ("background", &[AUTO, "opaque"]),
    ("moderation", &[AUTO, "low"]),
    ("style", &[AUTO, "vivid", "natural"]),
];

/// How much smaller a file is than at its best, in percent, with OpenAI's default.
const COMPRESSION: (&str, u64) = ("output_compression", 100);

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

/// What the requests for images have in common.
pub(super) struct Common {
    pub(super) model: ModelId,
    /// Without seed and LoRAs.
    pub(super) params: GenerateParams,
    images: u32,
    loras: WantedLoras,
    seed: Option<u64>,
    output_format: OutputFormat,
    form: ImageForm,
    /// `None`: the client waits for the whole answer.
    streaming: Option<Streaming>,
}

/// The part of a request that does not depend on its parameters.
pub(super) struct Settled {
    images: u32,
    loras: FoundLoras,
    /// What is wrong with the LoRAs in the prompt.
    errors: Vec<FieldError>,
    output_format: OutputFormat,
    form: ImageForm,
    streaming: Option<Streaming>,
}

/// Valid requests, one for each image, and how their images are returned.
pub(super) struct ValidImages {
    /// At least one. They differ only in their seeds.
    pub(super) specs: Vec<GenerateSpec>,
    pub(super) loras: FoundLoras,
    pub(super) output_format: OutputFormat,
    pub(super) form: ImageForm,
    /// Of one image.
    pub(super) streaming: Option<Streaming>,
}

impl Common {
    /// Reads its fields on a route that can stream.
    pub(super) fn read_streamed(fields: &mut Fields, kind: Kind) -> Option<Self> {
        let streaming = Streaming::read(fields, kind);
        let common = Self::read(fields)?;
        if streaming.is_some() && common.images > 1 {
            fields.refuse("n", "must be 1 with `stream`");
        }
        if streaming.is_some() && common.form == ImageForm::Link {
            fields.refuse("response_format", "must be `b64_json` with `stream`");
        }
        Some(Self { streaming, ..common })
    }

    /// Reads its fields on a route that answers at the end.
    pub(super) fn read(fields: &mut Fields) -> Option<Self> {
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
        Some(Self { model: ModelId::new(model?), params, images, loras, seed, output_format, form, streaming: None })
    }

    /// Adds its fields to a schema.
    pub(super) fn schema(object: ObjectSchema) -> ObjectSchema {
        let formats = one_of(OutputFormat::ALL.map(OutputFormat::as_str));
        let forms = one_of(ImageForm::ALL.map(ImageForm::as_str));
        let user = "Accepted for clients that send it. Not stored, and without effect.";
        let compression = integer(COMPRESSION.1).maximum(Some(COMPRESSION.1));
        let object = object
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
                forms.description(Some(
                    "Whether the answer contains the image (the default), or a link to it that needs no key.",
                )),
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
            .optional(COMPRESSION.0, compression.description(Some(WITHOUT_EFFECT)));
        FIXED.into_iter().fold(object, |object, (field, words)| object.optional(field, without_effect(words)))
    }

    /// Its parameters, with the seed of the first image and the LoRAs, of a caller with these limits.
    pub(super) async fn settle(
        self,
        state: &HttpState,
        limits: &KeyLimits,
    ) -> Result<(GenerateParams, Settled), ApiError> {
        let Self { mut params, mut loras, images, seed, output_format, form, streaming, .. } = self;
        params.seed = match seed {
            Some(seed) => seed,
            None => random_seed().map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?,
        };
        let mut errors = Vec::from_iter(wanted_cache::refusal(params.step_cache, &state.settings));
        loras.read_prompt(state, &mut params.prompt, &mut errors);
        let loras = loras.find(state, limits).await?;
        params.loras = loras.uses();
        Ok((params, Settled { images, loras, errors, output_format, form, streaming }))
    }
}

impl Settled {
    /// One request for each image, from the check of the first.
    ///
    /// # Errors
    /// Everything that is wrong with the first.
    pub(super) fn check(self, outcome: Result<GenerateSpec, Vec<FieldError>>) -> Result<ValidImages, ApiError> {
        let Self { images, loras, errors, output_format, form, streaming } = self;
        let outcome = outcome.map_err(|errors| errors.into_iter().map(with_openai_name).collect());
        let first = loras.settle(outcome, errors)?;
        let specs = (0..images).map(|later| first.with_later_seed(later)).collect();
        Ok(ValidImages { specs, loras, output_format, form, streaming })
    }
}

/// The required prompt.
pub(super) fn prompt(fields: &mut Fields) -> Option<String> {
    let prompt = fields.required_text("prompt");
    if prompt.as_ref().is_some_and(String::is_empty) {
        fields.refuse("prompt", "must not be empty");
    }
    prompt
}

/// The parsed request.
pub(in crate::http) struct GenerateImages(pub(super) Common);

impl FromFields for GenerateImages {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let (prompt, common) = (prompt(fields), Common::read_streamed(fields, Kind::Generation));
        let mut common = common?;
        common.params.prompt = prompt?;
        Some(Self(common))
    }

    // OpenAI's clients may send ignored fields of any length.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max
    }
}

impl ToSchema for GenerateImages {}

impl PartialSchema for GenerateImages {
    fn schema() -> RefOr<Schema> {
        let prompt = text().min_length(Some(1)).description(Some("What to generate."));
        Streaming::schema(Common::schema(ObjectSchema::new(ABOUT).required("prompt", prompt))).into()
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
        refuse_other_words(fields, field, words);
    }
    let compression = fields.given(COMPRESSION.0).filter(|value| !value.is_null());
    if compression.is_some_and(|value| json::integer(&value) != Some(COMPRESSION.1)) {
        fields.refuse(COMPRESSION.0, format!("cannot be chosen: leave it out, or send {}", COMPRESSION.1));
    }
}

/// Refuses all words of a field but those without effect.
pub(super) fn refuse_other_words(fields: &mut Fields, field: &str, words: &[&str]) {
    if fields.text(field).is_some_and(|word| !words.contains(&word.as_str())) {
        fields.refuse(field, format!("is not supported: leave it out, or send `{}`", words.join("` or `")));
    }
}

/// The schema of a field with words without effect.
pub(super) fn without_effect(words: &'static [&'static str]) -> ObjectBuilder {
    one_of(words.iter().copied()).description(Some(WITHOUT_EFFECT))
}

/// The error of a field that has another name here: width and height are one field, and images have no roles.
fn with_openai_name(error: FieldError) -> FieldError {
    let FieldError { field, reason } = error;
    match field.as_str() {
        "width" | "height" => {
            let reason = if reason.starts_with("must") { format!("{field} {reason}") } else { reason };
            FieldError::new("size", reason)
        }
        INPUT_IMAGES | IMAGES => FieldError::new(IMAGE, reason),
        _ => FieldError { field, reason },
    }
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
    fn errors_have_the_names_of_openais_fields() {
        for (field, name, reason) in [
            ("width", "size", "width must be even"),
            ("input_images_base64", "image", "must be even"),
            ("images", "image", "must be even"),
            ("image[1]", "image[1]", "must be even"),
            ("steps", "steps", "must be even"),
        ] {
            assert_eq!(with_openai_name(FieldError::new(field, "must be even")), FieldError::new(name, reason));
        }
    }
}
