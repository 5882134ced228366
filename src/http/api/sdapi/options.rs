//! The options of AUTOMATIC1111's API. There they are those of the server; here the only one that can be changed, the model, is
//! remembered for the calling key alone, until the worker restarts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::others::{SETTINGS_WITHOUT_EFFECT, anything, ignore};
use super::request::CHECKPOINT;
use crate::catalog::Availability;
use crate::domain::ids::{KeyId, ModelId};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::InferenceCaller;
use crate::http::extract::json::{ApiJson, Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::jobs::JobsError;

const ABOUT: &str = "Options to change: the model. Others that clients send by themselves are accepted without effect.";

/// The model that a client names, which may have copied a hash from another server's title: `NAME [HASH]`.
pub(super) fn model_named(name: &str) -> ModelId {
    let with_hash = name.strip_suffix(']').and_then(|rest| rest.rsplit_once(" ["));
    ModelId::new(with_hash.map_or(name, |(id, _)| id))
}

/// The model of a key's requests that name none: the one that it has chosen, or else the first that is served.
pub(super) fn model_of(state: &HttpState, key: KeyId) -> Result<ModelId, ApiError> {
    if let Some(chosen) = state.0.sdapi.choice(key) {
        return Ok(chosen);
    }
    let first = state.catalog.served().into_iter().next().map(|(card, _)| card.id.clone());
    first.ok_or_else(|| ApiError::new(ErrorCode::ModelUnavailable))
}

/// Options to change.
pub(in crate::http) struct SetOptions(Option<String>);

impl FromFields for SetOptions {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        ignore(fields, &SETTINGS_WITHOUT_EFFECT);
        Some(Self(fields.text(CHECKPOINT)))
    }
}

impl ToSchema for SetOptions {}

impl PartialSchema for SetOptions {
    fn schema() -> RefOr<Schema> {
        let model =
            text().description(Some("The id of a model that is served: that of the key's requests from now on."));
        let object = ObjectSchema::new(ABOUT).optional(CHECKPOINT, model);
        let without_effect = |object: ObjectSchema, name| object.optional(name, anything("Without effect."));
        SETTINGS_WITHOUT_EFFECT.into_iter().fold(object, without_effect).into()
    }
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
) -> Result<Json<Value>, ApiError> {
    let model = model_of(&state, caller.key_id)?;
    Ok(Json(json!({
        "sd_model_checkpoint": model.as_str(),
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "samples_save": false,
    })))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Sdapi, "get_sdapi_options", "The options of the calling key")
        .answers_bytes(StatusCode::OK, "application/json", "The options; `sd_model_checkpoint` is the model.")
        .refuses([ErrorCode::NotFound, ErrorCode::ModelUnavailable])
}

pub(in crate::http) async fn change(
    State(state): State<HttpState>,
    InferenceCaller(caller): InferenceCaller,
    ApiJson { value: SetOptions(model), .. }: ApiJson<SetOptions>,
) -> Result<Json<Value>, ApiError> {
    if let Some(name) = model {
        let id = state.card_of(&model_named(&name))?.id.clone();
        if state.catalog.availability(&id) == Availability::NotServed {
            return Err(JobsError::ModelUnavailable(Availability::NotServed).into());
        }
        state.0.sdapi.choose(caller.key_id, id);
    }
    Ok(Json(Value::Null))
}

pub(in crate::http) fn change_operation() -> Operation {
    Operation::new(Tag::Sdapi, "set_sdapi_options", "Choose the model of the calling key's requests")
        .description("Requests may name a model of their own in `override_settings`.")
        .body::<SetOptions>(json!({ "sd_model_checkpoint": "fluxserve/flux-shapes" }))
        .answers_bytes(StatusCode::OK, "application/json", "`null`.")
        .refuses([ErrorCode::NotFound, ErrorCode::ModelNotFound, ErrorCode::ModelUnavailable])
}

/// The flags that the server was started with, of which clients need none.
pub(in crate::http) async fn flags(_: InferenceCaller) -> Json<Value> {
    Json(json!({ "api": true }))
}

pub(in crate::http) fn flags_operation() -> Operation {
    Operation::new(Tag::Sdapi, "get_sdapi_flags", "The flags of the server")
        .answers_bytes(StatusCode::OK, "application/json", "That there is an API.")
        .refuses([ErrorCode::NotFound])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_named_by_a_title_with_a_hash() {
        for name in ["a/b", "a/b [0123abcd]"] {
            assert_eq!(model_named(name), ModelId::new("a/b"), "{name}");
        }
        for other in ["a/b [", "a/b[c]", "a/b]"] {
            assert_eq!(model_named(other), ModelId::new(other));
        }
    }
}
