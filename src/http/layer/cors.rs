//! Adds CORS headers to shared routes, and answers preflight requests.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tower::{Layer, ServiceExt};

use crate::http::cors::Shared;

pub(in crate::http) async fn share(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    if !path.is_some_and(|path| shared.paths.contains(path.as_str())) {
        return next.run(request).await;
    }
    match shared.layer.layer(next).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
