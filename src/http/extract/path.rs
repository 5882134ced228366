//! Ids in paths. An invalid id counts as not found.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::domain::ids::{DeliveryId, JobId, KeyId, NamespaceId, ProjectId};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;
use crate::uploads::UploadId;

/// The job in the path.
pub(in crate::http) struct JobPath(pub(in crate::http) JobId);

impl FromRequestParts<HttpState> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::JobNotFound))
    }
}

/// The key in the path.
pub(in crate::http) struct KeyPath(pub(in crate::http) KeyId);

impl FromRequestParts<HttpState> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::KeyNotFound))
    }
}

/// The namespace in the path.
pub(in crate::http) struct NamespacePath(pub(in crate::http) NamespaceId);

impl FromRequestParts<HttpState> for NamespacePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::NamespaceNotFound))
    }
}

/// The delivery in the path.
pub(in crate::http) struct DeliveryPath(pub(in crate::http) DeliveryId);

impl FromRequestParts<HttpState> for DeliveryPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::DeliveryNotFound))
    }
}

/// A key and its delivery in the path.
pub(in crate::http) struct KeyDeliveryPath(pub(in crate::http) KeyId, pub(in crate::http) DeliveryId);

impl FromRequestParts<HttpState> for KeyDeliveryPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let not_found = || ApiError::new(ErrorCode::DeliveryNotFound);
        let ids = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((key, delivery)) = ids.map_err(|_| not_found())?;
        let key = key.parse().map_err(|_| ApiError::new(ErrorCode::KeyNotFound))?;
        delivery.parse().map(|delivery| Self(key, delivery)).map_err(|_| not_found())
    }
}

/// The project in the path.
pub(in crate::http) struct ProjectPath(pub(in crate::http) ProjectId);

impl FromRequestParts<HttpState> for ProjectPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::ProjectNotFound))
    }
}

/// The LoRA in the path: its id or its name.
pub(in crate::http) struct LoraPath(pub(in crate::http) String);

impl FromRequestParts<HttpState> for LoraPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::LoraNotFound))
    }
}

/// The upload in the path.
pub(in crate::http) struct UploadPath(pub(in crate::http) UploadId);

impl FromRequestParts<HttpState> for UploadPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let id = id_in_path(parts, state).await;
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::UploadNotFound))
    }
}

async fn id_in_path<T: FromStr>(parts: &mut Parts, state: &HttpState) -> Option<T> {
    let Path(text) = Path::<String>::from_request_parts(parts, state).await.ok()?;
    text.parse().ok()
}
