//! Rules for all management routes: they exist only with a password, pages of other sites cannot change anything, and
//! no answer is cached.

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, ErrorCode};
use crate::http::same_origin;
use crate::http::state::HttpState;

pub(in crate::http) async fn guard(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    if !path.is_some_and(|path| state.0.management_paths.contains(path.as_str())) {
        return next.run(request).await;
    }
    let public_url = state.settings.public_url.as_deref();
    let is_foreign = !request.method().is_safe() && same_origin::is_foreign(request.headers(), public_url);
    let mut response = match check(&state, is_foreign).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn check(state: &HttpState, is_foreign: bool) -> Result<(), ApiError> {
    if !state.admin.has_password().await? {
        return Err(ApiError::new(ErrorCode::NotFound));
    }
    if is_foreign {
        let detail = "the Origin is not this worker's; behind a proxy, set it in `http.public_url`";
        return Err(ApiError::new(ErrorCode::ForeignOrigin).with_detail(detail));
    }
    Ok(())
}
