//! The images of a request's body: `images`, each with a role, and `input_images_base64`, all in the model's main role.

use std::sync::Arc;

use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};

use super::input_images::{ImageSource, WantedImage};
use crate::domain::conditioning::{
    ControlMode, IMAGE_SCALE_MAX, IMAGES, IMAGES_MAX, ImageOptions, ImageRole, Preprocess, UnknownWord,
};
use crate::domain::model::ModelCard;
use crate::domain::spec::INPUT_IMAGES;
use crate::http::extract::json::{Fields, integer};
use crate::http::openapi::schema::{ObjectSchema, integer as whole_number, number, one_of, text};

const ROLE: &str = "role";
const BASE64: &str = "base64";
const UPLOAD_ID: &str = "upload_id";
const MODE: &str = "mode";

const ABOUT_INPUT: &str = "Images in the model's main role: the input image for image-to-image and FLUX.1-Fill, the reference \
                           images of FLUX.1-Kontext, the control image of FLUX.1-Canny and FLUX.1-Depth. The model's \
                           `min_input_images` and `max_input_images` say how many. A PNG, JPEG or WebP file of at most 16 \
                           MiB, 32 million pixels and 16,384 pixels per side, as base64 without `data:` in front. It is \
                           resized; transparency is dropped. Kept until the job ends, and never returned.";

const ABOUT_IMAGES: &str = "Images, each with a role, beside those of `input_images_base64`. The model's `images` say how many \
                            of each role it takes.";

const ABOUT_ROLE: &str = "`input`: the image to change. `mask`: what of it is repainted, white is. `control`: a map of edges, \
                          depth or another property that the result follows. `reference`: an image that the prompt speaks \
                          of. `style`: an image whose look and content are varied.";

/// Reads the field `images`.
pub(in crate::http) fn read(fields: &mut Fields) -> Vec<WantedImage> {
    let images = fields.objects(IMAGES, image);
    let named = images.into_iter().enumerate().map(|(place, (role, source, options))| {
        let field = format!("{IMAGES}[{place}]");
        WantedImage { field, role, source, options }
    });
    named.collect()
}

/// The images of `input_images_base64`, in the main role of the model.
pub(in crate::http) fn in_main_role(images: Vec<String>, card: &ModelCard) -> impl Iterator<Item = WantedImage> {
    let role = card.conditioning.main_role();
    images.into_iter().enumerate().map(move |(place, image)| WantedImage {
        field: format!("{INPUT_IMAGES}[{place}]"),
        role,
        source: ImageSource::Base64(image),
        options: ImageOptions::default(),
    })
}

fn image(fields: &mut Fields) -> Option<(ImageRole, ImageSource, ImageOptions)> {
    let (role, source) = (role(fields), source(fields));
    let options = ImageOptions {
        controlnet: fields.text("controlnet").map(Arc::from),
        mode: mode(fields),
        preprocess: fields.word("preprocess"),
        scale: fields.number("scale"),
        start: fields.number("start"),
        end: fields.number("end"),
    };
    Some((role?, source?, options))
}

fn role(fields: &mut Fields) -> Option<ImageRole> {
    let word = fields.required_text(ROLE)?;
    word.parse().inspect_err(|unknown: &UnknownWord| fields.refuse(ROLE, unknown.to_string())).ok()
}

/// Exactly one of the two fields that give the pixels.
fn source(fields: &mut Fields) -> Option<ImageSource> {
    let [base64, upload] = [BASE64, UPLOAD_ID].map(|field| fields.given(field).filter(|value| !value.is_null()));
    match (base64, upload) {
        (Some(Value::String(base64)), None) => return Some(ImageSource::Base64(base64)),
        (None, Some(Value::String(id))) => return Some(ImageSource::Upload(id)),
        (Some(_), None) => fields.refuse(BASE64, "must be a string"),
        (None, Some(_)) => fields.refuse(UPLOAD_ID, "must be a string"),
        (Some(_), Some(_)) => fields.refuse(BASE64, format!("and `{UPLOAD_ID}` do not go together")),
        (None, None) => fields.refuse(BASE64, format!("is required, or `{UPLOAD_ID}`")),
    }
    None
}

/// A word or a number.
fn mode(fields: &mut Fields) -> Option<ControlMode> {
    let value = fields.given(MODE).filter(|value| !value.is_null())?;
    let number = integer(&value).map(|number| ControlMode(u32::try_from(number).unwrap_or(u32::MAX)));
    // A value that is neither is told the same as a text that is no mode.
    let word = || value.as_str().unwrap_or_default().parse::<ControlMode>();
    let mode = number.map_or_else(word, Ok);
    mode.inspect_err(|unknown: &UnknownWord| fields.refuse(MODE, unknown.to_string())).ok()
}

/// The schema of `input_images_base64`.
pub(in crate::http) fn input_schema() -> RefOr<Schema> {
    ArrayBuilder::new().items(text().content_encoding("base64")).description(Some(ABOUT_INPUT)).into()
}

/// The schema of `images`.
pub(in crate::http) fn schema() -> RefOr<Schema> {
    let base64 = "The file as base64, as in `input_images_base64`. Either this or `upload_id`.";
    let upload = "The id of one of the key's uploads. The job has a copy of it.";
    let net = "Of a control image: the name of its ControlNet, if the model has several.";
    let mode = "Of a control image whose ControlNet knows several kinds of maps: the kind, as a word or a number.";
    let preprocess = "Of a control image that is no map yet: how one is made of it.";
    let scale = "Of a control or style image: how strongly it acts. Defaults to 1.";
    let start = "Of a control image: the share of the steps before it acts. Defaults to 0.";
    let end = "Of a control image: the share of the steps until which it acts. Defaults to 1.";
    let share = || number().minimum(Some(0)).maximum(Some(1));
    let image = ObjectSchema::new("An image and what it does.")
        .required(ROLE, one_of(ImageRole::ALL.map(ImageRole::as_str)).description(Some(ABOUT_ROLE)))
        .optional(BASE64, text().content_encoding("base64").description(Some(base64)))
        .optional(UPLOAD_ID, text().description(Some(upload)))
        .optional("controlnet", text().description(Some(net)))
        .optional(MODE, OneOfBuilder::new().item(text()).item(whole_number(0)).description(Some(mode)))
        .optional("preprocess", one_of(Preprocess::ALL.map(Preprocess::as_str)).description(Some(preprocess)))
        .optional("scale", number().minimum(Some(0)).maximum(Some(IMAGE_SCALE_MAX)).description(Some(scale)))
        .optional("start", share().description(Some(start)))
        .optional("end", share().description(Some(end)));
    let image: RefOr<Schema> = image.into();
    ArrayBuilder::new().items(image).max_items(Some(IMAGES_MAX)).description(Some(ABOUT_IMAGES)).into()
}
