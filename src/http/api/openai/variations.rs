//! `POST /v1/images/variations`: images in the style of another, without a prompt, by FLUX.1-Redux.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::edit_request::{ImageFile, file, form_bytes_max, required_files};
use super::images::{ImagesView, respond};
use super::request::{Common, IMAGE};
use crate::domain::conditioning::{ImageOptions, ImageRole};
use crate::domain::spec::FieldError;
use crate::http::api::inference::GENERATION_REFUSALS;
use crate::http::api::input_images::{ImageSource, WantedImage};
use crate::http::error::ApiError;
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::form::ApiForm;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::ObjectSchema;
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;

const ABOUT: &str = "Variations of an image, with the fields of OpenAI's API and some of our own.";
const ABOUT_IMAGE: &str = "The image to vary: a PNG, JPEG or WebP file of at most 16 MiB, 32 million pixels and 16,384 \
                           pixels per side. Transparency is dropped.";

/// The parsed request.
pub(in crate::http) struct VaryImages {
    common: Common,
    image: ImageFile,
}

impl FromFields for VaryImages {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let mut images = required_files(fields);
        let image = images.pop();
        if !images.is_empty() {
            fields.refuse(IMAGE, "must be one");
        }
        let common = Common::read(fields);
        Some(Self { common: common?, image: image? })
    }

    fn body_bytes_max(state: &HttpState) -> usize {
        form_bytes_max(state)
    }
}

impl ToSchema for VaryImages {}

impl PartialSchema for VaryImages {
    fn schema() -> RefOr<Schema> {
        Common::schema(ObjectSchema::new(ABOUT).required(IMAGE, file(ABOUT_IMAGE))).into()
    }
}

pub(in crate::http) fn vary_operation() -> Operation {
    Operation::new(Tag::OpenAi, "vary_openai_image", "Vary an image, and wait for the results")
        .description(
            "Only for models that are served with FLUX.1-Redux. Each result is a job, as with \
             `POST /v1/images/generations`.",
        )
        .form_body::<VaryImages>()
        .answers::<ImagesView>(StatusCode::OK, "The images, in the order of their seeds.")
        .refuses(GENERATION_REFUSALS)
}

pub(in crate::http) async fn vary(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    origin: Origin,
    ApiForm { value: VaryImages { common, image }, reservation }: ApiForm<VaryImages>,
) -> Result<Response, ApiError> {
    let card = state.card_of(&common.model)?;
    if *card.images(ImageRole::Style).end() == 0 {
        let reason = "makes no variations: it is not served with FLUX.1-Redux";
        return Err(ApiError::invalid(vec![FieldError::new("model", reason)]));
    }
    let (params, settled) = common.settle(&state, &caller.0.limits).await?;
    let ImageFile { field, bytes } = image;
    let (role, source, options) = (ImageRole::Style, ImageSource::File(bytes), ImageOptions::default());
    let wanted = vec![WantedImage { field, role, source, options }];
    let outcome = state.0.images.spec(wanted, params, card, reservation).await?;
    respond(&state, &caller, &origin, settled.check(outcome)?).await
}
