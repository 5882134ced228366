//! `/v1/api-keys/{key_id}/webhook` and `…/deliveries`: a key's default receiver, its secret, and what was delivered.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::webhook::{EditWebhook, MakeSecret, NewSecretView, WebhookView};
use crate::http::api::webhooks::{DeliveryListView, DeliveryView, describe_list, describe_resend, take_delivery_query};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::{KeyDeliveryPath, KeyPath};
use crate::http::extract::query::Parameters;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
) -> Result<Json<WebhookView>, ApiError> {
    Ok(Json(state.webhooks.get(id).await?.into()))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Webhooks, "get_webhook", "A key's webhook")
        .answers::<WebhookView>(StatusCode::OK, "The default of the key's jobs, without its secret.")
        .refuses([ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    ApiJson { value: EditWebhook(changes), .. }: ApiJson<EditWebhook>,
) -> Result<Json<WebhookView>, ApiError> {
    let administrator = administrator.recheck(&state).await?;
    Ok(Json(state.webhooks.edit(id, changes, &administrator.actor()).await?.into()))
}

pub(in crate::http) fn edit_operation() -> Operation {
    Operation::new(Tag::Webhooks, "edit_webhook", "Change a key's webhook")
        .description("Applies to jobs that are accepted from now on. A URL needs a secret, which is made first.")
        .body::<EditWebhook>(json!({ "url": "https://hooks.example.org/images" }))
        .answers::<WebhookView>(StatusCode::OK, "The webhook as it is now.")
        .refuses([ErrorCode::KeyEnded, ErrorCode::WebhookNotSetUp, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn make_secret(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    body: Option<ApiJson<MakeSecret>>,
) -> Result<Json<NewSecretView>, ApiError> {
    let MakeSecret { grace_seconds } = body.map(|body| body.value).unwrap_or_default();
    let administrator = administrator.recheck(&state).await?;
    Ok(Json(state.webhooks.make_secret(id, grace_seconds, &administrator.actor()).await?.into()))
}

pub(in crate::http) fn make_secret_operation() -> Operation {
    Operation::new(Tag::Webhooks, "make_webhook_secret", "Give a key a webhook secret, or a new one")
        .description(
            "Only this response contains the secret. The one before signs as well for `grace_seconds`, so that a receiver \
             can switch without an interruption.",
        )
        .optional_body::<MakeSecret>(json!({ "grace_seconds": 86400 }))
        .answers::<NewSecretView>(StatusCode::OK, "The webhook and its secret.")
        .refuses([ErrorCode::KeyEnded, ErrorCode::StorageUnavailable])
}

pub(in crate::http) async fn test(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(state.webhooks.test(id).await?.into())))
}

pub(in crate::http) fn test_operation() -> Operation {
    Operation::new(Tag::Webhooks, "test_webhook", "Send a test to a key's webhook")
        .description("An event of the type `webhook.test`. The list of deliveries shows what becomes of it.")
        .answers::<DeliveryView>(StatusCode::ACCEPTED, "The delivery.")
        .refuses([
            ErrorCode::KeyEnded,
            ErrorCode::WebhookNotSetUp,
            ErrorCode::WebhooksOff,
            ErrorCode::StorageUnavailable,
        ])
}

pub(in crate::http) async fn deliveries(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
    mut parameters: Parameters,
) -> Result<Json<DeliveryListView>, ApiError> {
    let query = take_delivery_query(&mut parameters);
    parameters.finish()?;
    state.keys.get(id).await?;
    Ok(Json(state.webhooks.deliveries(id, query).await?.into()))
}

pub(in crate::http) fn deliveries_operation() -> Operation {
    describe_list(Operation::new(Tag::Webhooks, "list_key_deliveries", "A key's deliveries, the newest first"))
        .description("What is still to be delivered, and the log of seven days.")
}

pub(in crate::http) async fn resend(
    State(state): State<HttpState>,
    _: Administrator,
    KeyDeliveryPath(key, id): KeyDeliveryPath,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(state.webhooks.resend(key, id).await?.into())))
}

pub(in crate::http) fn resend_operation() -> Operation {
    describe_resend(Operation::new(Tag::Webhooks, "resend_key_delivery", "Send a key's delivery again"))
}
