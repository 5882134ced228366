//! The bodies of `POST /sdapi/v1/txt2img` and `POST /sdapi/v1/img2img`. Clients of AUTOMATIC1111's API send many fields by
//! themselves. What asks for nothing that could be missed is ignored; what asks for something that this worker does not do is
//! refused by name.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::others::{SETTINGS_WITHOUT_EFFECT, anything, flag, ignore, read_others, with_others};
use crate::domain::conditioning::{IMAGES, IMAGES_MAX};
use crate::domain::limits::KeyLimits;
use crate::domain::spec::{
    FieldError, GenerateParams, GenerateSpec, INPUT_IMAGES, MASK_PADDING, MASK_PADDING_MAX, SEED_MAX, random_seed,
};
use crate::http::api::input_images::body_bytes;
use crate::http::api::wanted_loras::{FoundLoras, WantedLoras};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::json::{Fields, FromFields, integer};
use crate::http::openapi::schema::{ObjectSchema, integer as whole_number, number, text};
use crate::http::state::HttpState;

/// Maximum images of one answer.
const ANSWER_IMAGES_MAX: u32 = 10;

pub(super) const BATCH_SIZE: &str = "batch_size";
pub(super) const INIT_IMAGES: &str = "init_images";
pub(super) const MASK: &str = "mask";
const CFG_SCALE: &str = "cfg_scale";
const DISTILLED_CFG_SCALE: &str = "distilled_cfg_scale";
const STRENGTH: &str = "denoising_strength";
const ONLY_MASKED: &str = "inpaint_full_res";
const PADDING: &str = "inpaint_full_res_padding";
const INVERT: &str = "inpainting_mask_invert";
const SETTINGS: &str = "override_settings";
/// The setting, and the option, that names the model.
pub(super) const CHECKPOINT: &str = "sd_model_checkpoint";

const ABOUT_TEXT: &str = "An image to generate, with the fields of AUTOMATIC1111's API. Those that would change the image, \
                          and do not here, are refused unless they are off.";
const ABOUT_IMAGE: &str = "An image to change, with the fields of AUTOMATIC1111's API.";
const ABOUT_NEGATIVE: &str =
    "What to avoid. Without effect where `cfg_scale` is 1 or less; each step else takes two passes.";
const ABOUT_CFG: &str = "Strength of true guidance with a negative prompt; without one it has no effect.";
const ABOUT_DISTILLED: &str = "How closely to follow the prompt: FLUX's own guidance. Defaults to the model's.";
const ABOUT_SETTINGS: &str = "`sd_model_checkpoint` names the model, for this request alone.";
const ABOUT_STRENGTH: &str = "How much the result may differ from the image. In img2img it defaults to 0.75, or to 1 for a \
                              model that fills; in txt2img it has no effect.";
const ABOUT_INIT: &str = "The image to change: a PNG, JPEG or WebP file of at most 16 MiB in base64, with or without \
                          `data:` in front. Several only for models that take several.";
const ABOUT_MASK: &str = "Which part is repainted: the white one.";

/// What both bodies have in common.
pub(super) struct Common {
    /// The model's name, if this request has its own.
    pub(super) model: Option<String>,
    /// Without seed, images and LoRAs.
    params: GenerateParams,
    denoising_strength: Option<f64>,
    seed: Option<u64>,
    pub(super) batch_size: u32,
    pub(super) n_iter: u32,
    pub(super) sends_images: bool,
}

/// The part of a request that does not depend on its parameters.
pub(super) struct Settled {
    images: u32,
    loras: FoundLoras,
    /// What is wrong with the LoRAs in the prompt.
    errors: Vec<FieldError>,
}

impl Common {
    fn read(fields: &mut Fields) -> Self {
        let (batch_size, n_iter) = (count(fields, BATCH_SIZE), count(fields, "n_iter"));
        if batch_size.saturating_mul(n_iter) > ANSWER_IMAGES_MAX {
            let reason = format!("times `n_iter` must be at most {ANSWER_IMAGES_MAX}");
            fields.refuse(BATCH_SIZE, reason);
        }
        let params = GenerateParams {
            prompt: fields.text("prompt").unwrap_or_default(),
            width: fields.small_number("width"),
            height: fields.small_number("height"),
            steps: fields.small_number("steps"),
            guidance: fields.number(DISTILLED_CFG_SCALE),
            ..GenerateParams::default()
        };
        let params = with_negative(params, fields.text("negative_prompt"), fields.number(CFG_SCALE));
        let mut model = None;
        fields.nested(SETTINGS, |fields| {
            model = fields.text(CHECKPOINT);
            ignore(fields, &SETTINGS_WITHOUT_EFFECT);
        });
        let common = Self {
            model,
            params,
            denoising_strength: fields.number(STRENGTH),
            seed: seed(fields),
            batch_size,
            n_iter,
            sends_images: flag(fields, "send_images").unwrap_or(true),
        };
        read_others(fields);
        common
    }

    /// Adds its fields to a schema.
    fn schema(object: ObjectSchema) -> RefOr<Schema> {
        let settings = ObjectBuilder::new().property(CHECKPOINT, text());
        let settings = settings.additional_properties(Some(AdditionalProperties::FreeForm(true)));
        let seed = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(-1_i64));
        let object = object
            .optional("prompt", text().description(Some("What to generate.")))
            .optional("negative_prompt", text().description(Some(ABOUT_NEGATIVE)))
            .optional("width", whole_number(1).description(Some("Pixels, a multiple of 16.")))
            .optional("height", whole_number(1).description(Some("Pixels, a multiple of 16.")))
            .optional("steps", whole_number(1).description(Some("Denoising steps.")))
            .optional(CFG_SCALE, number().description(Some(ABOUT_CFG)))
            .optional(DISTILLED_CFG_SCALE, number().description(Some(ABOUT_DISTILLED)))
            .optional("seed", seed.maximum(Some(SEED_MAX)).description(Some("-1, or none: a random one.")))
            .optional(BATCH_SIZE, whole_number(1).description(Some("Images, times `n_iter`: at most 10 in all.")))
            .optional("n_iter", whole_number(1).description(Some("See `batch_size`.")))
            .optional(SETTINGS, settings.description(Some(ABOUT_SETTINGS)))
            .optional(STRENGTH, number().description(Some(ABOUT_STRENGTH)))
            .optional("send_images", anything("false: the answer has no images; they are jobs all the same."));
        with_others(object).into()
    }

    /// How far an input image may be left, if it was said.
    pub(super) fn denoising_strength(&self) -> Option<f64> {
        self.denoising_strength
    }

    /// Its parameters, with the seed of the first image and the LoRAs in the prompt, of a caller with these limits.
    pub(super) async fn settle(
        self,
        state: &HttpState,
        limits: &KeyLimits,
    ) -> Result<(GenerateParams, Settled), ApiError> {
        let Self { mut params, seed, batch_size, n_iter, .. } = self;
        params.seed = match seed {
            Some(seed) => seed,
            None => random_seed().map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?,
        };
        let (mut loras, mut errors) = (WantedLoras::default(), Vec::new());
        loras.read_prompt(state, &mut params.prompt, &mut errors);
        let loras = loras.find(state, limits).await?;
        params.loras = loras.uses();
        Ok((params, Settled { images: batch_size * n_iter, loras, errors }))
    }
}

impl Settled {
    /// One request for each image, from the check of the first, and their LoRAs.
    ///
    /// # Errors
    /// Everything that is wrong with the first, with the names of this API's fields.
    pub(super) fn check(
        self,
        outcome: Result<GenerateSpec, Vec<FieldError>>,
    ) -> Result<(Vec<GenerateSpec>, FoundLoras), ApiError> {
        let Self { images, loras, errors } = self;
        let outcome = outcome.map_err(|errors| errors.into_iter().map(with_sdapi_name).collect());
        let first: GenerateSpec = loras.settle(outcome, errors)?;
        let specs = (0..images).map(|later| first.with_later_seed(later)).collect();
        Ok((specs, loras))
    }
}

/// The parsed body of txt2img.
pub(in crate::http) struct TextToImage(pub(super) Common);

impl FromFields for TextToImage {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self(Common::read(fields)))
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max
    }
}

impl ToSchema for TextToImage {}

impl PartialSchema for TextToImage {
    fn schema() -> RefOr<Schema> {
        Common::schema(ObjectSchema::new(ABOUT_TEXT))
    }
}

/// The parsed body of img2img.
pub(in crate::http) struct ImageToImage {
    pub(super) common: Common,
    /// Files in base64; at least one.
    pub(super) images: Vec<String>,
    pub(super) mask: Option<Mask>,
}

/// What is repainted.
pub(super) struct Mask {
    /// A file in base64.
    pub(super) file: String,
    /// Whether black is repainted instead of white.
    pub(super) is_inverted: bool,
    /// The pixels around it, if only its region is generated.
    pub(super) padding: Option<u32>,
}

impl FromFields for ImageToImage {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let images: Vec<String> = fields.texts(INIT_IMAGES).unwrap_or_default();
        if images.is_empty() {
            fields.refuse(INIT_IMAGES, "is required");
        }
        let images = images.into_iter().map(without_scheme).collect();
        let file = fields.text(MASK).filter(|text| !text.is_empty());
        let is_inverted = flag(fields, INVERT).unwrap_or(false);
        let padding = fields.small_number(PADDING).unwrap_or(0);
        // By default it does so there, too.
        let padding = flag(fields, ONLY_MASKED).unwrap_or(true).then_some(padding);
        let mask = file.map(|file| Mask { file: without_scheme(file), is_inverted, padding });
        Some(Self { common: Common::read(fields), images, mask })
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        let images = body_bytes(state.catalog.images_max().max(1));
        // More would never fit beside other bodies. One image always fits, so that a model that takes none can say so.
        let largest = state.settings.bodies_bytes_max.max(body_bytes(1));
        state.settings.body_bytes_max.saturating_add(images.min(largest))
    }
}

impl ToSchema for ImageToImage {}

impl PartialSchema for ImageToImage {
    fn schema() -> RefOr<Schema> {
        let images = ArrayBuilder::new().items(text().content_encoding("base64")).min_items(Some(1));
        let images = images.max_items(Some(IMAGES_MAX)).description(Some(ABOUT_INIT));
        let padding = whole_number(0).maximum(Some(MASK_PADDING_MAX));
        let object = ObjectSchema::new(ABOUT_IMAGE)
            .required(INIT_IMAGES, images)
            .optional(MASK, text().content_encoding("base64").description(Some(ABOUT_MASK)))
            .optional(INVERT, anything("true or 1: the black part is repainted instead."))
            .optional(ONLY_MASKED, anything("Only the region around the mask is generated. Defaults to true."))
            .optional(PADDING, padding.description(Some("Pixels around that region. Defaults to 0.")));
        Common::schema(object)
    }
}

/// A number of images, 1 by default.
fn count(fields: &mut Fields, field: &str) -> u32 {
    let count = fields.small_number(field).unwrap_or(1);
    if count == 0 {
        fields.refuse(field, "must be at least 1");
    }
    count
}

/// A seed; -1 asks for a random one.
fn seed(fields: &mut Fields) -> Option<u64> {
    let value = fields.given("seed").filter(|value| !value.is_null() && value.as_f64() != Some(-1.0))?;
    let seed = integer(&value);
    if seed.is_none() {
        fields.refuse("seed", "must be a whole number, or -1 for a random one");
    }
    seed
}

/// With a negative prompt, unless it is empty or the scale leaves it without effect, as it does there.
fn with_negative(params: GenerateParams, negative: Option<String>, cfg_scale: Option<f64>) -> GenerateParams {
    let is_off = cfg_scale.is_some_and(|scale| scale <= 1.0);
    let negative_prompt = negative.filter(|text| !is_off && !text.trim().is_empty());
    let true_cfg_scale = cfg_scale.filter(|_| negative_prompt.is_some());
    GenerateParams { negative_prompt, true_cfg_scale, ..params }
}

/// A file in base64, without the `data:` that browsers put in front.
fn without_scheme(file: String) -> String {
    let content = file.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    content.map(|(_, content)| content.to_owned()).unwrap_or(file)
}

/// The error of a field that has another name here.
fn with_sdapi_name(error: FieldError) -> FieldError {
    let field = match error.field.as_str() {
        "guidance" => DISTILLED_CFG_SCALE,
        "true_cfg_scale" => CFG_SCALE,
        "strength" => STRENGTH,
        MASK_PADDING => PADDING,
        INPUT_IMAGES | IMAGES => INIT_IMAGES,
        _ => return error,
    };
    FieldError::new(field, error.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_prompt_acts_only_with_a_scale_above_one() {
        let asked = |negative: Option<&str>, scale| {
            let params = with_negative(GenerateParams::default(), negative.map(str::to_owned), scale);
            (params.negative_prompt, params.true_cfg_scale)
        };
        for (negative, scale) in [(None, Some(7.0)), (Some(""), Some(7.0)), (Some(" "), None), (Some("x"), Some(1.0))] {
            assert_eq!(asked(negative, scale), (None, None), "{negative:?} {scale:?}");
        }
        assert_eq!(asked(Some("x"), Some(4.0)), (Some("x".to_owned()), Some(4.0)));
        assert_eq!(asked(Some("x"), None), (Some("x".to_owned()), None), "the model's own scale");
    }

    #[test]
    fn a_file_may_be_a_data_url() {
        assert_eq!(without_scheme("data:image/png;base64,aGk=".to_owned()), "aGk=");
        assert_eq!(without_scheme("aGk=".to_owned()), "aGk=");
        assert_eq!(without_scheme("https://a.b/c.png".to_owned()), "https://a.b/c.png", "refused later");
    }
}
