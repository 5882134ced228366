//! How the client wants to watch a job: `preview=true`, and `Last-Event-ID` from a client that reconnects.

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;

use super::query::Parameters;
use crate::http::error::ApiError;
use crate::http::state::HttpState;
use crate::jobs::WatchOptions;

pub(in crate::http) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The client's options for the stream.
pub(in crate::http) struct Watching(pub(in crate::http) WatchOptions);

impl FromRequestParts<HttpState> for Watching {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let mut parameters = Parameters::from_request_parts(parts, state).await?;
        let previews = parameters.take("preview", "true or false").unwrap_or_default();
        parameters.finish()?;
        // An unknown id comes from another stream or is damaged: its client has seen nothing of this one.
        let seen = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
        Ok(Self(WatchOptions { seen, previews }))
    }
}
