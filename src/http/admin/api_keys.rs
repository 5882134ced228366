//! `/v1/api-keys`: the whole life of a key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::wire::key::{CreateKey, CreatedKeyView, EditKey, KeyListView, KeyView, RotateKey};
use crate::auth::{KEYS_PER_PAGE_MAX, KeyQuery};
use crate::domain::scope::Scope;
use crate::domain::spec::FieldError;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::KeyPath;
use crate::http::extract::query::Parameters;

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

pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    administrator: Administrator,
    ApiJson { value: CreateKey(new), .. }: ApiJson<CreateKey>,
) -> Result<(StatusCode, Json<CreatedKeyView>), ApiError> {
    refuse_unknown_namespaces(&new.scope)?;
    let created = state.keys.create(new, &administrator.actor()).await?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
    KeyPath(id): KeyPath,
) -> Result<Json<KeyView>, ApiError> {
    Ok(Json(state.keys.get(id).await?.into()))
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    ApiJson { value: EditKey(edit), .. }: ApiJson<EditKey>,
) -> Result<Json<KeyView>, ApiError> {
    edit.scope.as_ref().map_or(Ok(()), refuse_unknown_namespaces)?;
    let edited = state.keys.edit(id, edit, &administrator.actor()).await?;
    Ok(Json(edited.into()))
}

/// Without a body the old value ceases to work at once.
pub(in crate::http) async fn rotate(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
    body: Option<ApiJson<RotateKey>>,
) -> Result<Json<CreatedKeyView>, ApiError> {
    let RotateKey { grace_seconds } = body.map(|body| body.value).unwrap_or_default();
    let rotated = state.keys.rotate(id, grace_seconds, &administrator.actor()).await?;
    Ok(Json(rotated.into()))
}

pub(in crate::http) async fn revoke(
    State(state): State<HttpState>,
    administrator: Administrator,
    KeyPath(id): KeyPath,
) -> Result<Json<KeyView>, ApiError> {
    let revoked = state.keys.revoke(id, &administrator.actor()).await?;
    Ok(Json(revoked.into()))
}

/// A scope can name namespaces of this worker alone, and this worker has no table of namespaces yet: there is none that
/// could be named.
fn refuse_unknown_namespaces(scope: &Scope) -> Result<(), ApiError> {
    let Scope::KubernetesNamespaces(ids) = scope else { return Ok(()) };
    let unknown = |id| FieldError::new("scope", format!("`namespace_ids` names {id}, and there is no such namespace"));
    Err(ApiError::invalid(ids.iter().map(unknown).collect()))
}
