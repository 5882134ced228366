//! `POST /v1/images/edits`: images that are changed as a prompt says. OpenAI's images have no roles; the model's card decides
//! what they are to it.

use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::edit_request::{Edit, EditForm, EditJson, ImageFile, MASK};
use super::images::{ImagesView, respond};
use super::request::IMAGE;
use super::{stream, streaming};
use crate::decode::has_transparency;
use crate::domain::conditioning::{ImageOptions, ImageRole};
use crate::domain::model::ModelCard;
use crate::domain::spec::FieldError;
use crate::http::api::inference::GENERATION_REFUSALS;
use crate::http::api::input_images::{ImageSource, WantedImage};
use crate::http::error::ApiError;
use crate::http::extract::body::BodyReservation;
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::form::ApiForm;
use crate::http::extract::json::{ApiJson, is_json};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;

/// Default strength with a mask: what it covers is replaced, as OpenAI's clients expect.
const MASKED_STRENGTH: f64 = 1.0;

pub(in crate::http) fn edit_operation() -> Operation {
    let example = json!({
        "model": "fluxserve/flux-shapes", "prompt": "a green circle on a blue background",
        "images": [{ "image_url": "data:image/png;base64,iVBORw0KGgo=" }],
    });
    let summary = "Change images as a prompt says, and wait for the results";
    let operation = Operation::new(Tag::OpenAi, "edit_openai_images", summary)
        .description(
            "What the image is depends on the model: one that edits is told what to change (several images are allowed \
             where it takes several), one that fills replaces what the mask covers, one that follows a control image \
             takes it as that, and any other starts from it, with a mask only where that covers it. Each result is a \
             job, as with `POST /v1/images/generations`.",
        )
        .form_body::<EditForm>()
        .or_body::<EditJson>(example)
        .answers::<ImagesView>(StatusCode::OK, "The images, in the order of their seeds.")
        .refuses(GENERATION_REFUSALS);
    stream::describe(operation, streaming::Kind::Edit)
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    origin: Origin,
    request: Request,
) -> Result<Response, ApiError> {
    let (Edit { common, images, mask }, reservation) = read(request, &state).await?;
    let card = state.card_of(&common.model)?;
    check_counts(card, images.len(), mask.is_some()).map_err(refused)?;
    let (images, mask, reservation) = match (<[ImageFile; 1]>::try_from(images), mask) {
        (Ok([image]), None) if may_mask_itself(card) => masked_by_itself(&state, image, reservation).await?,
        (Ok([image]), mask) => (vec![image], mask, reservation),
        (Err(images), mask) => (images, mask, reservation),
    };
    let is_masked = mask.is_some();
    let wanted = in_roles(card, images, mask).map_err(refused)?;
    let (mut params, settled) = common.settle(&state, &caller.0.limits).await?;
    if is_masked {
        params.strength.get_or_insert(MASKED_STRENGTH);
    }
    let outcome = state.0.images.spec(wanted, params, card, reservation).await?;
    respond(&state, &caller, &origin, settled.check(outcome)?).await
}

async fn read(request: Request, state: &HttpState) -> Result<(Edit, BodyReservation), ApiError> {
    if is_json(request.headers()) {
        let read = <ApiJson<EditJson> as FromRequest<HttpState>>::from_request(request, state).await?;
        return Ok((read.value.0, read.reservation));
    }
    let read = <ApiForm<EditForm> as FromRequest<HttpState>>::from_request(request, state).await?;
    Ok((read.value.0, read.reservation))
}

fn refused(error: FieldError) -> ApiError {
    ApiError::invalid(vec![error])
}

/// Refuses images and masks of which the model does not take so many.
fn check_counts(card: &ModelCard, images: usize, has_mask: bool) -> Result<(), FieldError> {
    let max = *card.images(card.conditioning.main_role()).end();
    if max == 0 {
        return Err(FieldError::new(IMAGE, "is not taken by this model as it is served here"));
    }
    if images > max {
        return Err(FieldError::new(IMAGE, format!("must be at most {max} for this model, not {images} images")));
    }
    if has_mask && *card.images(ImageRole::Mask).end() == 0 {
        return Err(FieldError::new(MASK, "is not taken by this model"));
    }
    if has_mask && images > 1 {
        return Err(FieldError::new(MASK, format!("goes with one image, not with {images}")));
    }
    Ok(())
}

/// Whether an image with transparent pixels is its own mask. A model that edits by reference sees all of its image.
fn may_mask_itself(card: &ModelCard) -> bool {
    card.conditioning.main_role() == ImageRole::Input && *card.images(ImageRole::Mask).end() > 0
}

/// An image, and itself as its mask if it has transparent pixels.
async fn masked_by_itself(
    state: &HttpState,
    image: ImageFile,
    mut reservation: BodyReservation,
) -> Result<(Vec<ImageFile>, Option<Vec<u8>>, BodyReservation), ApiError> {
    reservation.grow_by(image.bytes.len())?;
    let owner = reservation.owner();
    let look = move || {
        let mask = has_transparency(&image.bytes).then(|| image.bytes.clone());
        (vec![image], mask, reservation)
    };
    state.0.images.look(owner, look).await
}

/// The images in the roles that they have for a model.
fn in_roles(card: &ModelCard, images: Vec<ImageFile>, mask: Option<Vec<u8>>) -> Result<Vec<WantedImage>, FieldError> {
    if mask.is_none() && *card.images(ImageRole::Mask).start() > 0 {
        let reason = "is required by this model: send a file whose transparent pixels are to be replaced, or make them \
                      transparent in the image itself";
        return Err(FieldError::new(MASK, reason));
    }
    let role = if mask.is_some() { ImageRole::Input } else { card.conditioning.main_role() };
    let wanted = |field, role, source| WantedImage { field, role, source, options: ImageOptions::default() };
    let images = images.into_iter().map(|image| wanted(image.field, role, ImageSource::File(image.bytes)));
    let mask = mask.map(|bytes| wanted(MASK.to_owned(), ImageRole::Mask, ImageSource::AlphaMask(bytes)));
    Ok(images.chain(mask).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::conditioning::{AttachedCards, Conditioning};
    use crate::domain::ids::ModelId;

    fn card(conditioning: Conditioning, input_images_max: usize) -> ModelCard {
        let dev = card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev"));
        let attached = AttachedCards::default();
        ModelCard { conditioning, input_images_min: 0, input_images_max, attached, ..dev }
    }

    /// The roles of the images of an edit, or the field and the beginning of the reason why it is refused.
    fn roles(card: &ModelCard, images: usize, has_mask: bool) -> Result<Vec<(String, ImageRole)>, (String, String)> {
        let files = (0..images).map(|at| ImageFile { field: format!("image[{at}]"), bytes: vec![1] }).collect();
        let mask = has_mask.then(|| vec![2]);
        let wanted = check_counts(card, images, has_mask).and_then(|()| in_roles(card, files, mask));
        let wanted = wanted.map_err(|error| (error.field, error.reason.chars().take(20).collect()))?;
        Ok(wanted
            .into_iter()
            .map(|image| {
                let is_mask = matches!(&image.source, ImageSource::AlphaMask(bytes) if *bytes == [2_u8]);
                let is_image = matches!(&image.source, ImageSource::File(bytes) if *bytes == [1_u8]);
                assert!(if image.role == ImageRole::Mask { is_mask } else { is_image }, "{}", image.field);
                (image.field, image.role)
            })
            .collect())
    }

    #[test]
    fn the_card_decides_what_the_images_are() {
        use ImageRole::{Control, Input, Mask, Reference};
        let named = |roles: &[ImageRole]| {
            let named = |(at, role): (usize, &ImageRole)| {
                (if *role == Mask { "mask".to_owned() } else { format!("image[{at}]") }, *role)
            };
            Ok(roles.iter().enumerate().map(named).collect::<Vec<_>>())
        };
        let prompted = card(Conditioning::Prompt, 1);
        assert_eq!(roles(&prompted, 1, false), named(&[Input]));
        assert_eq!(roles(&prompted, 1, true), named(&[Input, Mask]));
        let fill = card(Conditioning::Fill, 1);
        assert_eq!(roles(&fill, 1, true), named(&[Input, Mask]));
        let kontext = card(Conditioning::References, 3);
        assert_eq!(roles(&kontext, 3, false), named(&[Reference; 3]));
        assert_eq!(roles(&kontext, 1, true), named(&[Input, Mask]));
        assert_eq!(roles(&card(Conditioning::Control, 1), 1, false), named(&[Control]));
    }

    #[test]
    fn what_a_model_does_not_take_is_refused_by_name() {
        let refused = |field: &str, reason: &str| Err((field.to_owned(), reason.to_owned()));
        let prompted = card(Conditioning::Prompt, 1);
        assert_eq!(roles(&prompted, 2, false), refused("image", "must be at most 1 fo"));
        assert_eq!(roles(&prompted, 2, true), refused("image", "must be at most 1 fo"));
        assert_eq!(roles(&card(Conditioning::Prompt, 0), 1, false), refused("image", "is not taken by this"));
        assert_eq!(roles(&card(Conditioning::Fill, 1), 1, false), refused("mask", "is required by this "));
        assert_eq!(roles(&card(Conditioning::References, 3), 2, true), refused("mask", "goes with one image,"));
        assert_eq!(roles(&card(Conditioning::Control, 1), 1, true), refused("mask", "is not taken by this"));
    }

    #[test]
    fn only_where_a_run_starts_from_the_image_it_is_its_own_mask() {
        let cards = [
            (Conditioning::Prompt, 1, true),
            (Conditioning::Prompt, 0, false),
            (Conditioning::Fill, 1, true),
            (Conditioning::References, 3, false),
            (Conditioning::Control, 1, false),
        ];
        for (conditioning, max, may) in cards {
            assert_eq!(may_mask_itself(&card(conditioning, max)), may, "{conditioning:?}");
        }
    }
}
