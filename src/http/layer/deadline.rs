//! Limits the time until the answer's head. A body that continues after that, such as an event stream, has its own
//! limits.

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::admin::loras::UPLOAD_PATH;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;

pub(in crate::http) async fn limit(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let is_upload = request.method() == Method::POST && route == Some(UPLOAD_PATH);
    let deadline = if is_upload { state.settings.upload_deadline } else { state.settings.request_deadline };
    match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(ErrorCode::DeadlineExceeded).into_response(),
    }
}
