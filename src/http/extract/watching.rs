//! How the client wants to watch a job: `preview=true`, and `Last-Event-ID` from one who was here before.

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;

use super::query::Parameters;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::jobs::WatchOptions;

pub(in crate::http) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the client wants to be told.
pub(in crate::http) struct Watching(pub(in crate::http) WatchOptions);

impl FromRequestParts<HttpState> for Watching {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let mut parameters = Parameters::from_request_parts(parts, state).await?;
        let previews = parameters.take("preview", "true or false").unwrap_or_default();
        parameters.finish()?;
        // One that is not ours is of another stream, or damaged on the way: its client has seen nothing of this one.
        let seen = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        Ok(Self(WatchOptions { seen, previews }))
    }
}
