//! No request takes for ever. What is held to the deadline is the way to the answer's head; a body that goes on after
//! that, as an event stream does, has bounds of its own.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};

pub(in crate::http) async fn limit(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(state.settings.request_deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(ErrorCode::DeadlineExceeded).into_response(),
    }
}
