//! Whether the process lives, whether it can serve, and its metrics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, FORWARDED};
use axum::http::{Extensions, HeaderMap, HeaderName};
use serde::Serialize;

use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::peer_address;

/// A database that takes longer than this to write is as good as none.
const WRITE_CHECK_DEADLINE: Duration = Duration::from_secs(5);
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Serialize)]
pub(in crate::http) struct HealthView {
    status: &'static str,
}

/// The process answers.
pub(in crate::http) async fn alive() -> Json<HealthView> {
    Json(HealthView { status: "ok" })
}

/// The database writes, and an engine has drawn and has not failed since.
pub(in crate::http) async fn ready(State(state): State<HttpState>) -> Result<Json<HealthView>, ApiError> {
    let not_ready = |detail| ApiError::new(ErrorCode::NotReady).with_detail(detail);
    if state.jobs.is_draining() {
        return Err(not_ready("the worker is shutting down"));
    }
    if !state.catalog.any_ready() {
        return Err(not_ready("no engine is ready to draw"));
    }
    let refusal = || not_ready("the database does not take writes");
    let checked = tokio::time::timeout(WRITE_CHECK_DEADLINE, state.jobs.check_writable()).await;
    checked.map_err(|_| refusal())?.map_err(|error| refusal().with_cause(&error))?;
    Ok(Json(HealthView { status: "ready" }))
}

/// Prometheus text, for peers on this machine.
pub(in crate::http) async fn metrics(
    State(state): State<HttpState>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    // A proxy on this machine speaks for others, whom it names.
    let is_proxied = headers.contains_key(FORWARDED) || headers.contains_key("x-forwarded-for");
    let is_local = !is_proxied && peer_address(&extensions).is_some_and(|peer| peer.is_loopback());
    let handle = state.metrics.as_ref().filter(|_| is_local).ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    Ok(([(CONTENT_TYPE, PROMETHEUS_TEXT)], handle.render()))
}
