//! Limits the time until the answer's head. A body that continues after that, such as an event stream, has its own
//! limits.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;

pub(in crate::http) async fn limit(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(state.settings.request_deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(ErrorCode::DeadlineExceeded).into_response(),
    }
}
