//! The body of `POST /v1/images/edits`: a form with images as files, or JSON with images as `data:` URLs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::request::{Common, IMAGE, prompt, refuse_other_words, without_effect};
use super::streaming::{Kind, Streaming};
use crate::decode::FILE_BYTES_MAX;
use crate::domain::conditioning::{IMAGES, IMAGES_MAX};
use crate::domain::spec::{GenerateParams, MASK_PADDING, MASK_PADDING_MAX};
use crate::http::api::input_images::body_bytes;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, integer, number, text};
use crate::http::state::HttpState;

/// The field of the mask.
pub(super) const MASK: &str = "mask";
const STRENGTH: &str = "strength";
/// The member of a JSON image with its content.
const IMAGE_URL: &str = "image_url";
/// How closely OpenAI's models keep to the image, with its values. Here `strength` says so.
const FIDELITY: (&str, &[&str]) = ("input_fidelity", &["low", "high"]);

const ABOUT: &str = "Images to change, with the fields of OpenAI's API and some of our own.";
const ABOUT_PROMPT: &str = "What the result shows, or what a model that edits is told to change.";
const ABOUT_IMAGES: &str = "The image to change: a PNG, JPEG or WebP file of at most 16 MiB, 32 million pixels and \
                            16,384 pixels per side. Several, in parts named `image` or `image[]`, only for models that \
                            take several. Without a mask, an image with transparent pixels is its own mask, unless the \
                            model edits by reference.";
const ABOUT_MASK: &str = "What to replace: the transparent pixels of this file, or the white ones of a file without \
                          transparency. Stretched to the image's size.";
const ABOUT_STRENGTH: &str = "How much the result may differ from the image: the share of the steps that are run; 1 \
                              ignores it. Defaults to 1 with a mask, and to 0.6 without one. Only for models that \
                              start from an image.";
const ABOUT_PADDING: &str = "Only the region around the mask is generated, with this many pixels around it, and put \
                             back.";
const ABOUT_URL: &str = "The file as a `data:` URL in base64. Nothing is fetched.";

/// A file of a request.
#[derive(Debug, PartialEq)]
pub(super) struct ImageFile {
    /// What errors call it.
    pub(super) field: String,
    pub(super) bytes: Vec<u8>,
}

/// An edit that is asked for.
pub(super) struct Edit {
    pub(super) common: Common,
    /// At least one.
    pub(super) images: Vec<ImageFile>,
    pub(super) mask: Option<Vec<u8>>,
}

impl Edit {
    /// Reads all but the images.
    fn read_common(fields: &mut Fields) -> Option<Common> {
        let (prompt, common) = (prompt(fields), Common::read_streamed(fields, Kind::Edit));
        let (strength, mask_padding) = (fields.number(STRENGTH), fields.small_number(MASK_PADDING));
        refuse_other_words(fields, FIDELITY.0, FIDELITY.1);
        let mut common = common?;
        common.params = GenerateParams { prompt: prompt?, strength, mask_padding, ..common.params };
        Some(common)
    }

    /// The schema of a body with such images.
    fn schema(object: ObjectSchema) -> RefOr<Schema> {
        let strength = number().exclusive_minimum(Some(0)).maximum(Some(1)).description(Some(ABOUT_STRENGTH));
        let padding = integer(0).maximum(Some(MASK_PADDING_MAX)).description(Some(ABOUT_PADDING));
        let object = object
            .required("prompt", text().min_length(Some(1)).description(Some(ABOUT_PROMPT)))
            .optional(STRENGTH, strength)
            .optional(MASK_PADDING, padding)
            .optional(FIDELITY.0, without_effect(FIDELITY.1));
        Streaming::schema(Common::schema(object)).into()
    }
}

/// An edit in a form.
pub(in crate::http) struct EditForm(pub(super) Edit);

impl FromFields for EditForm {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let images = required_files(fields);
        let mut masks = fields.files(MASK);
        let mask = masks.pop();
        if !masks.is_empty() {
            fields.refuse(MASK, "is given twice");
        }
        Some(Self(Edit { common: Edit::read_common(fields)?, images, mask }))
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        form_bytes_max(state)
    }
}

/// The largest form with the images of a request, in bytes.
pub(super) fn form_bytes_max(state: &HttpState) -> usize {
    bytes_max(state, |images| images.saturating_mul(FILE_BYTES_MAX))
}

/// The largest body, in bytes, if so many images add so many. One image always fits, so that a model that takes none can say so.
fn bytes_max(state: &HttpState, of_images: impl Fn(usize) -> usize) -> usize {
    let all = of_images(state.catalog.images_max().max(1));
    // More would never fit beside other bodies.
    let largest = state.settings.bodies_bytes_max.max(of_images(1));
    state.settings.body_bytes_max.saturating_add(all.min(largest))
}

/// The files of the images in a form.
pub(super) fn required_files(fields: &mut Fields) -> Vec<ImageFile> {
    let files = fields.files(IMAGE);
    if files.is_empty() {
        fields.refuse(IMAGE, "is required");
    }
    let is_one = files.len() == 1;
    let field = |at: usize| if is_one { IMAGE.to_owned() } else { format!("{IMAGE}[{at}]") };
    files.into_iter().enumerate().map(|(at, bytes)| ImageFile { field: field(at), bytes }).collect()
}

/// The schema of a file in a form.
pub(super) fn file(about: &str) -> ObjectBuilder {
    text().content_media_type("application/octet-stream").description(Some(about))
}

impl ToSchema for EditForm {}

impl PartialSchema for EditForm {
    fn schema() -> RefOr<Schema> {
        let images = ArrayBuilder::new().items(file("A file.")).min_items(Some(1)).max_items(Some(IMAGES_MAX));
        let object = ObjectSchema::new(ABOUT)
            .required(IMAGE, images.description(Some(ABOUT_IMAGES)))
            .optional(MASK, file(ABOUT_MASK));
        Edit::schema(object)
    }
}

/// An edit in JSON.
pub(in crate::http) struct EditJson(pub(super) Edit);

impl FromFields for EditJson {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        // One that cannot be read keeps its place: it is no missing one.
        let files = fields.objects(IMAGES, |fields| Some(file_of(fields)));
        if files.is_empty() {
            fields.refuse(IMAGES, "is required");
        }
        let file = |(at, bytes): (usize, Option<_>)| {
            let field = format!("{IMAGES}[{at}]");
            Some(ImageFile { field, bytes: bytes? })
        };
        let images = files.into_iter().enumerate().filter_map(file).collect();
        let mut mask = None;
        fields.nested(MASK, |fields| mask = file_of(fields));
        Some(Self(Edit { common: Edit::read_common(fields)?, images, mask }))
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        bytes_max(state, body_bytes)
    }
}

/// The file of a JSON image.
fn file_of(fields: &mut Fields) -> Option<Vec<u8>> {
    let url = fields.required_text(IMAGE_URL)?;
    decoded(&url).inspect_err(|reason| fields.refuse(IMAGE_URL, *reason)).ok()
}

fn decoded(url: &str) -> Result<Vec<u8>, &'static str> {
    let data = url.strip_prefix("data:").ok_or("must be a `data:` URL: this worker fetches no images")?;
    let (kind, content) = data.split_once(',').ok_or("has no comma before its content")?;
    if !kind.ends_with(";base64") {
        return Err("must be in base64, like `data:image/png;base64,`");
    }
    STANDARD.decode(content).map_err(|_| "is not base64 with padding and without line breaks")
}

impl ToSchema for EditJson {}

impl PartialSchema for EditJson {
    fn schema() -> RefOr<Schema> {
        let image = |about: &str| -> RefOr<Schema> {
            ObjectSchema::new(about).required(IMAGE_URL, text().description(Some(ABOUT_URL))).into()
        };
        let images = ArrayBuilder::new().items(image("An image.")).min_items(Some(1)).max_items(Some(IMAGES_MAX));
        let object = ObjectSchema::new(ABOUT)
            .required(IMAGES, images.description(Some(ABOUT_IMAGES)))
            .optional(MASK, image(ABOUT_MASK));
        Edit::schema(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_url_is_a_file() {
        assert_eq!(decoded("data:image/png;base64,aGk="), Ok(b"hi".to_vec()));
        assert_eq!(decoded("data:;base64,"), Ok(Vec::new()));
        for (url, reason) in [
            ("https://example.org/a.png", "must be a `data:` URL: this worker fetches no images"),
            ("aGk=", "must be a `data:` URL: this worker fetches no images"),
            ("data:image/png;base64", "has no comma before its content"),
            ("data:image/png,aGk=", "must be in base64, like `data:image/png;base64,`"),
            ("data:image/png;base64,aGk", "is not base64 with padding and without line breaks"),
        ] {
            assert_eq!(decoded(url), Err(reason));
        }
    }
}
