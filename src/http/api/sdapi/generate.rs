//! `POST /sdapi/v1/txt2img` and `POST /sdapi/v1/img2img`: the requested number of images, each as its own job; all or none.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::try_join_all;
use serde_json::json;

use super::answer::{Asked, ImagesView, answer};
use super::options::{model_named, model_of};
use super::request::{BATCH_SIZE, Common, INIT_IMAGES, ImageToImage, MASK, Mask, TextToImage};
use crate::domain::conditioning::{Conditioning, ImageOptions, ImageRole};
use crate::domain::format::OutputFormat;
use crate::domain::model::ModelCard;
use crate::domain::spec::{FieldError, GenerateSpec};
use crate::http::api::inference::GENERATION_REFUSALS;
use crate::http::api::input_images::{ImageSource, WantedImage};
use crate::http::api::openai::images::{accept_all, count, until_ended};
use crate::http::api::wanted_loras::FoundLoras;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::json::ApiJson;
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;
use crate::jobs::AcceptedJob;

/// Default strength, as in that API.
const STRENGTH_DEFAULT: f64 = 0.75;

pub(in crate::http) fn text_to_image_operation() -> Operation {
    let example =
        json!({ "prompt": "a red circle on a blue background", "width": 128, "height": 128, "batch_size": 2 });
    Operation::new(Tag::Sdapi, "txt2img", "Generate images and wait for them")
        .description(
            "Each image is a job and counts as one request against the key's rate limit. If one of them is refused or \
             fails, or if the client hangs up, the unfinished ones are canceled.",
        )
        .body::<TextToImage>(example)
        .answers::<ImagesView>(StatusCode::OK, "The images, in the order of their seeds.")
        .refuses(GENERATION_REFUSALS)
        .refuses([ErrorCode::NotFound])
}

pub(in crate::http) fn image_to_image_operation() -> Operation {
    let example = json!({ "prompt": "a green circle", "init_images": ["iVBORw0KGgo="], "denoising_strength": 0.7 });
    Operation::new(Tag::Sdapi, "img2img", "Change an image, or the part of it under a mask, and wait for the results")
        .description(
            "What the image is depends on the model: one that edits is told what to change, one that follows a control \
             image takes it as that, and any other starts from it. As with `txt2img`, each result is a job.",
        )
        .body::<ImageToImage>(example)
        .answers::<ImagesView>(StatusCode::OK, "The images, in the order of their seeds.")
        .refuses(GENERATION_REFUSALS)
        .refuses([ErrorCode::NotFound])
}

pub(in crate::http) async fn text_to_image(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    origin: Origin,
    ApiJson { value: TextToImage(request), .. }: ApiJson<TextToImage>,
) -> Result<Response, ApiError> {
    let card = card_for(&state, &caller, &request)?;
    let main = card.conditioning.main_role();
    if *card.images(main).start() > 0 {
        return Err(refused(INIT_IMAGES, format!("are needed by this model, as {main} images: use img2img")));
    }
    let asked = Asked::of(&request);
    let (params, settled) = request.settle(&state, &caller.0.limits).await?;
    let (specs, loras) = settled.check(GenerateSpec::new(params, card))?;
    respond(&state, (&caller, &origin), (specs, loras), asked).await
}

pub(in crate::http) async fn image_to_image(
    State(state): State<HttpState>,
    caller: InferenceCaller,
    origin: Origin,
    ApiJson { value: request, reservation, .. }: ApiJson<ImageToImage>,
) -> Result<Response, ApiError> {
    let ImageToImage { common, images, mask } = request;
    let card = card_for(&state, &caller, &common)?;
    check_counts(card, images.len(), mask.is_some())?;
    let mask_padding = mask.as_ref().and_then(|mask| mask.padding);
    let strength = strength_for(card, mask.is_some(), common.denoising_strength());
    let wanted = in_roles(card, images, mask);
    let asked = Asked::of(&common);
    let (mut params, settled) = common.settle(&state, &caller.0.limits).await?;
    (params.strength, params.mask_padding) = (strength, mask_padding);
    let outcome = state.0.images.spec(wanted, params, card, reservation).await?;
    respond(&state, (&caller, &origin), settled.check(outcome)?, asked).await
}

/// The card of the request's model: its own, or the one that the key has chosen.
fn card_for<'a>(
    state: &'a HttpState,
    caller: &InferenceCaller,
    request: &Common,
) -> Result<&'a Arc<ModelCard>, ApiError> {
    let model = match &request.model {
        Some(name) => model_named(name),
        None => model_of(state, caller.0.key_id)?,
    };
    state.card_of(&model)
}

fn refused(field: &str, reason: impl Into<String>) -> ApiError {
    ApiError::invalid(vec![FieldError::new(field, reason)])
}

/// Refuses images and masks of which the model does not take so many, or so few.
fn check_counts(card: &ModelCard, images: usize, has_mask: bool) -> Result<(), ApiError> {
    let max = *card.images(card.conditioning.main_role()).end();
    let masks = card.images(ImageRole::Mask);
    if max == 0 {
        return Err(refused(INIT_IMAGES, "are not taken by this model as it is served here"));
    }
    if images > max {
        return Err(refused(INIT_IMAGES, format!("must be at most {max} for this model, not {images} images")));
    }
    if has_mask && *masks.end() == 0 {
        return Err(refused(MASK, "is not taken by this model"));
    }
    if has_mask && images > 1 {
        return Err(refused(MASK, format!("goes with one image, not with {images}")));
    }
    if !has_mask && *masks.start() > 0 {
        return Err(refused(MASK, "is required by this model"));
    }
    Ok(())
}

/// What the images are to a model. With a mask, they are what is repainted.
fn role_of(card: &ModelCard, has_mask: bool) -> ImageRole {
    if has_mask { ImageRole::Input } else { card.conditioning.main_role() }
}

/// The strength, which only a run that starts from an image has. Clients send it always.
fn strength_for(card: &ModelCard, has_mask: bool, given: Option<f64>) -> Option<f64> {
    match (role_of(card, has_mask), card.conditioning) {
        (ImageRole::Input, Conditioning::Fill) => given,
        (ImageRole::Input, _) => Some(given.unwrap_or(STRENGTH_DEFAULT)),
        _ => None,
    }
}

/// The images in the roles that they have for a model.
fn in_roles(card: &ModelCard, images: Vec<String>, mask: Option<Mask>) -> Vec<WantedImage> {
    let role = role_of(card, mask.is_some());
    let wanted = |field, role, source| WantedImage { field, role, source, options: ImageOptions::default() };
    let images = images.into_iter().enumerate();
    let images = images.map(|(at, file)| wanted(format!("{INIT_IMAGES}[{at}]"), role, ImageSource::Base64(file)));
    let mask = mask.map(|Mask { file, is_inverted, .. }| {
        let source = if is_inverted { ImageSource::Inverted(file) } else { ImageSource::Base64(file) };
        wanted(MASK.to_owned(), ImageRole::Mask, source)
    });
    images.chain(mask).collect()
}

/// Generates the images of a request that is valid, and answers with them.
async fn respond(
    state: &HttpState,
    (caller, origin): (&InferenceCaller, &Origin),
    (specs, loras): (Vec<GenerateSpec>, FoundLoras),
    asked: Asked,
) -> Result<Response, ApiError> {
    let caller = caller.recheck(state).await?;
    loras.check_allowed(&caller.limits)?;
    count(state, &caller, specs.len() as u32, BATCH_SIZE)?;
    // An early end of this function, by an error or a client that hangs up, drops the jobs, which cancels them.
    let accepted = accept_all(state, &caller, origin, specs, OutputFormat::Png).await?;
    let ids = accepted.iter().map(|job| job.report().job.id).collect();
    let waiting = state.0.sdapi.wait_for(caller.key_id, ids);
    let reports = try_join_all(accepted.iter().map(|job| until_ended(state, job))).await?;
    drop(waiting);
    let mut images = Vec::new();
    if asked.sends_images {
        for report in &reports {
            images.push(state.jobs.image(report.job.owner, report.job.id).await?);
        }
    }
    let response = answer(asked, reports, images).await?;
    accepted.into_iter().for_each(AcceptedJob::keep);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::conditioning::AttachedCards;
    use crate::domain::ids::ModelId;

    fn card(conditioning: Conditioning, input_images_max: usize) -> ModelCard {
        let dev = card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev"));
        let attached = AttachedCards::default();
        ModelCard { conditioning, input_images_min: 0, input_images_max, attached, ..dev }
    }

    fn mask(is_inverted: bool) -> Mask {
        Mask { file: "m".to_owned(), is_inverted, padding: None }
    }

    fn roles(card: &ModelCard, images: usize, mask: Option<Mask>) -> Vec<(String, ImageRole, bool)> {
        let wanted = in_roles(card, vec!["i".to_owned(); images], mask).into_iter();
        wanted.map(|image| (image.field, image.role, matches!(image.source, ImageSource::Inverted(_)))).collect()
    }

    #[test]
    fn the_card_decides_what_the_images_are() {
        let image = |at: usize, role| (format!("init_images[{at}]"), role, false);
        let prompted = card(Conditioning::Prompt, 1);
        assert_eq!(roles(&prompted, 1, None), [image(0, ImageRole::Input)]);
        let masked = [image(0, ImageRole::Input), ("mask".to_owned(), ImageRole::Mask, true)];
        assert_eq!(roles(&prompted, 1, Some(mask(true))), masked);
        let kontext = card(Conditioning::References, 2);
        assert_eq!(roles(&kontext, 2, None), [image(0, ImageRole::Reference), image(1, ImageRole::Reference)]);
        let masked = [image(0, ImageRole::Input), ("mask".to_owned(), ImageRole::Mask, false)];
        assert_eq!(roles(&kontext, 1, Some(mask(false))), masked);
        assert_eq!(roles(&card(Conditioning::Control, 1), 1, None), [image(0, ImageRole::Control)]);
    }

    #[test]
    fn only_a_run_that_starts_from_an_image_has_a_strength() {
        for (conditioning, has_mask, given, expected) in [
            (Conditioning::Prompt, false, None, Some(STRENGTH_DEFAULT)),
            (Conditioning::Prompt, false, Some(0.3), Some(0.3)),
            (Conditioning::References, false, Some(0.3), None),
            (Conditioning::References, true, Some(0.3), Some(0.3)),
            (Conditioning::Fill, true, None, None),
            (Conditioning::Fill, true, Some(0.3), Some(0.3)),
            (Conditioning::Control, false, Some(0.3), None),
        ] {
            assert_eq!(strength_for(&card(conditioning, 1), has_mask, given), expected, "{conditioning:?}");
        }
    }

    #[test]
    fn what_a_model_does_not_take_is_refused() {
        for (conditioning, max, images, has_mask, is_taken) in [
            (Conditioning::Prompt, 1, 1, true, true),
            (Conditioning::Prompt, 1, 2, false, false),
            (Conditioning::Prompt, 0, 1, false, false),
            (Conditioning::Fill, 1, 1, false, false),
            (Conditioning::References, 3, 3, false, true),
            (Conditioning::References, 3, 2, true, false),
            (Conditioning::Control, 1, 1, true, false),
        ] {
            let checked = check_counts(&card(conditioning, max), images, has_mask);
            assert_eq!(checked.is_ok(), is_taken, "{conditioning:?} {max} {images} {has_mask}");
        }
    }
}
