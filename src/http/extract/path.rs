//! Ids in paths. What is no id names no job.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::domain::ids::JobId;
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};

/// The job that the path names.
pub(in crate::http) struct JobPath(pub(in crate::http) JobId);

impl FromRequestParts<HttpState> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = text.and_then(|Path(text)| text.parse().ok());
        id.map(Self).ok_or_else(|| ApiError::new(ErrorCode::JobNotFound))
    }
}
