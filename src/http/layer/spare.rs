//! On a spare connection, beyond the limit, only health checks are answered.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, ErrorCode};
use crate::http::hosts::HEALTH_PATHS;

/// Requests end all the time, and free their connections.
const RETRY_AFTER_SECONDS: u64 = 2;

/// Marks a request on a spare connection.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct OnSpareConnection;

pub(in crate::http) async fn hold(request: Request, next: Next) -> Response {
    let is_spare = request.extensions().get::<OnSpareConnection>().is_some();
    if is_spare && !HEALTH_PATHS.contains(&request.uri().path()) {
        return ApiError::new(ErrorCode::TooManyConnections).with_retry_after(RETRY_AFTER_SECONDS).into_response();
    }
    next.run(request).await
}
