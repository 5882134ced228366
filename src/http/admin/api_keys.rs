//! `/v1/api-keys`: the life cycle of keys.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::budget::check_payable;
use super::wire::key::{CreateKey, CreatedKeyView, EditKey, KeyListView, KeyView, RotateKey};
use crate::auth::{KEYS_PER_PAGE_MAX, KeyQuery, KeyState};
use crate::domain::budget::BudgetHolder;
use crate::domain::scope::Scope;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::KeyPath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::one_of;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
    mut parameters: Parameters,
) -> Result<Json<KeyListView>, ApiError> {
    let before = parameters.take("cursor", "the `next_cursor` of an earlier page");
    let key_state = parameters.take("state", "active, expired or revoked");
    let keys_max = parameters.take_limit(KEYS_PER_PAGE_MAX);
    parameters.finish()?;
    let page = state.keys.page(KeyQuery { before, state: key_state, keys_max }).await?;
    let data = page.keys.into_iter().map(KeyView::from).collect();
    Ok(Json(KeyListView { data, next_cursor: page.next.map(|id| id.to_string()) }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "list_api_keys", "All keys, the newest first")
        .query("state", one_of(KeyState::ALL.map(KeyState::as_str)), "Only keys in this state.")
        .pages(KEYS_PER_PAGE_MAX)
        .answers::<KeyListView>(StatusCode::OK, "One page of keys.")
}

pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    administrator: Administrator,
    ApiJson { value: CreateKey { new, project }, .. }: ApiJson<CreateKey>,
) -> Result<(StatusCode, Json<CreatedKeyView>), ApiError> {
    check_payable(&state, new.limits.budget)?;
    refuse_unknown_namespaces(&state, Some(&new.scope)).await?;
    let administrator = administrator.recheck(&state).await?;
    let created = state.keys.create_in(new, project, &administrator.actor()).await?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

pub(in crate::http) fn create_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "create_api_key", "Create a key")
        .description("Only this response contains the key's value.")
        .body::<CreateKey>(json!({ "name": "web shop", "scope": { "inference": true } }))
        .answers::<CreatedKeyView>(StatusCode::CREATED, "The key and its value.")
        .refuses([ErrorCode::KubernetesUnavailable])
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
) -> Result<Json<KeyView>, ApiError> {
    Ok(Json(state.keys.get(id).await?.into()))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "get_api_key", "Get a key")
        .answers::<KeyView>(StatusCode::OK, "The key, without its value.")
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    ApiJson { value: EditKey(edit), .. }: ApiJson<EditKey>,
) -> Result<Json<KeyView>, ApiError> {
    check_payable(&state, edit.limits.budget.set())?;
    refuse_unknown_namespaces(&state, edit.scope.as_ref()).await?;
    let administrator = administrator.recheck(&state).await?;
    let edited = state.keys.edit(id, edit, &administrator.actor()).await?;
    state.jobs.note_budget(BudgetHolder::Key(id));
    Ok(Json(edited.into()))
}

pub(in crate::http) fn edit_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "edit_api_key", "Rename a key, change its scope, expiry, limits, priority or project")
        .description("Applies to the key's next request.")
        .body::<EditKey>(json!({ "limits": { "requests_per_minute": 60 } }))
        .answers::<KeyView>(StatusCode::OK, "The key as it is now.")
        .refuses([ErrorCode::KeyEnded, ErrorCode::KubernetesUnavailable])
}

/// Without a body the old value stops working at once.
pub(in crate::http) async fn rotate(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    body: Option<ApiJson<RotateKey>>,
) -> Result<Json<CreatedKeyView>, ApiError> {
    let RotateKey { grace_seconds } = body.map(|body| body.value).unwrap_or_default();
    let administrator = administrator.recheck(&state).await?;
    let rotated = state.keys.rotate(id, grace_seconds, &administrator.actor()).await?;
    Ok(Json(rotated.into()))
}

pub(in crate::http) fn rotate_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "rotate_api_key", "Give a key a new value")
        .description(
            "Only this response contains the new value. The old one stops working at once, or after `grace_seconds`.",
        )
        .optional_body::<RotateKey>(json!({ "grace_seconds": 86400 }))
        .answers::<CreatedKeyView>(StatusCode::OK, "The key and its new value.")
        .refuses([ErrorCode::KeyEnded])
}

pub(in crate::http) async fn revoke(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
) -> Result<Json<KeyView>, ApiError> {
    let revoked = state.keys.revoke(id, &administrator.actor()).await?;
    state.jobs.cancel_all_of(revoked.id);
    if let Err(error) = state.uploads.remove_all_of(revoked.id).await {
        // It is revoked all the same, and the next sweep removes them.
        tracing::warn!(?error, key = %revoked.id, "the uploads of a revoked key are left");
    }
    Ok(Json(revoked.into()))
}

pub(in crate::http) fn revoke_operation() -> Operation {
    Operation::new(Tag::ApiKeys, "revoke_api_key", "Revoke a key")
        .description(
            "Permanent, and applies to the key's next request. Its unfinished jobs are canceled, its uploads removed. Its \
             record remains.",
        )
        .answers::<KeyView>(StatusCode::OK, "The key as it is now.")
}

/// A scope can only name namespaces of this worker.
async fn refuse_unknown_namespaces(state: &HttpState, scope: Option<&Scope>) -> Result<(), ApiError> {
    let Some(Scope::KubernetesNamespaces(ids)) = scope else { return Ok(()) };
    let unknown = state.kubernetes.unknown(ids).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown_id = |id| FieldError::new("scope", format!("`namespace_ids` has the unknown namespace {id}"));
    Err(ApiError::invalid(unknown.into_iter().map(unknown_id).collect()))
}
