//! Ids in paths. What is no id names nothing.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::domain::ids::{JobId, KeyId, NamespaceId};
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};

/// The job that the path names.
pub(in crate::http) struct JobPath(pub(in crate::http) JobId);

impl FromRequestParts<HttpState> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::JobNotFound))
    }
}

/// The key that the path names.
pub(in crate::http) struct KeyPath(pub(in crate::http) KeyId);

impl FromRequestParts<HttpState> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::KeyNotFound))
    }
}

/// The namespace that the path names.
pub(in crate::http) struct NamespacePath(pub(in crate::http) NamespaceId);

impl FromRequestParts<HttpState> for NamespacePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::NamespaceNotFound))
    }
}

async fn id_in_path<T: FromStr>(parts: &mut Parts, state: &HttpState) -> Option<T> {
    let Path(text) = Path::<String>::from_request_parts(parts, state).await.ok()?;
    text.parse().ok()
}
