//! Whether the process lives, whether it can serve, and its metrics.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::openapi::{Operation, Tag};
use crate::jobs::JobsError;

/// A database that takes longer than this to write is as good as none.
const WRITE_CHECK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the outcome of a check stands. Anyone may ask, and each check is a write that the disk has to confirm.
const WRITE_CHECK_FRESH: Duration = Duration::from_secs(1);
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether database and disk took a write, and when that was seen. Who asks while a check runs waits for its outcome.
#[derive(Default)]
pub(in crate::http) struct WriteCheck(Mutex<Option<(Instant, Result<(), &'static str>)>>);

/// How it is.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(in crate::http) struct HealthView {
    status: &'static str,
}

/// The process answers, and no engine is beyond what the process can do about it.
pub(in crate::http) async fn alive(State(state): State<HttpState>) -> Result<Json<HealthView>, ApiError> {
    match state.jobs.stalled() {
        None => Ok(Json(HealthView { status: "ok" })),
        Some(why) => Err(ApiError::new(ErrorCode::EngineStalled).with_cause(&why).with_detail(why)),
    }
}

pub(in crate::http) fn alive_operation() -> Operation {
    Operation::new(Tag::Health, "get_health", "Whether the process answers, and starting it again would not help")
        .says(
            "An engine that is at one thing for 60 times as long as that should take, and for a minute at least, or that was \
             built again three times without an image in between, will not draw by itself. Whoever looks after the worker \
             should start it again: jobs that were accepted are drawn then.",
        )
        .answers::<HealthView>(StatusCode::OK, "It does.")
        .refuses([ErrorCode::EngineStalled])
}

/// Database and results folder take writes, and an engine has drawn and has not failed since.
pub(in crate::http) async fn ready(State(state): State<HttpState>) -> Result<Json<HealthView>, ApiError> {
    let not_ready = |detail| ApiError::new(ErrorCode::NotReady).with_detail(detail);
    if state.jobs.is_draining() {
        return Err(not_ready("the worker is shutting down"));
    }
    if !state.catalog.any_ready() {
        return Err(not_ready("no engine is ready to draw"));
    }
    takes_writes(&state).await.map_err(not_ready)?;
    Ok(Json(HealthView { status: "ready" }))
}

pub(in crate::http) fn ready_operation() -> Operation {
    Operation::new(Tag::Health, "get_readiness", "Whether images can be had now")
        .answers::<HealthView>(
            StatusCode::OK,
            "The database and the folder of results take writes, and an engine has drawn and not failed since.",
        )
        .refuses([ErrorCode::NotReady])
}

async fn takes_writes(state: &HttpState) -> Result<(), &'static str> {
    let mut seen = state.0.write_check.0.lock().await;
    if let Some((at, outcome)) = *seen
        && at.elapsed() < WRITE_CHECK_FRESH
    {
        return outcome;
    }
    let (database, results) = tokio::join!(
        is_done("the database", state.jobs.check_writable()),
        is_done("results", state.jobs.check_results())
    );
    let outcome = match (database, results) {
        (false, _) => Err("the database does not take writes"),
        (true, false) => Err("the folder of results does not take images"),
        (true, true) => Ok(()),
    };
    *seen = Some((Instant::now(), outcome));
    outcome
}

/// Whether a check is done in time, and well.
async fn is_done(what: &'static str, check: impl Future<Output = Result<(), JobsError>>) -> bool {
    match tokio::time::timeout(WRITE_CHECK_DEADLINE, check).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(what, error = &error as &dyn std::error::Error, "it does not take writes");
            false
        }
        Err(_) => {
            tracing::error!(what, deadline = ?WRITE_CHECK_DEADLINE, "it takes too long to write");
            false
        }
    }
}

type MetricsText = ([(HeaderName, &'static str); 1], String);

/// Prometheus text, for whoever reaches the address that it has of its own.
pub(in crate::http) async fn metrics(State(state): State<HttpState>) -> Result<MetricsText, ApiError> {
    let handle = state.metrics.as_ref().ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    Ok(([(CONTENT_TYPE, PROMETHEUS_TEXT)], handle.render()))
}

pub(in crate::http) fn metrics_operation() -> Operation {
    Operation::new(Tag::Health, "get_metrics", "Metrics, at an address of their own")
        .says(
            "Served at `metrics_listen`, which is 127.0.0.1:9090 by default. Elsewhere there is nothing at this path.",
        )
        .answers_text(StatusCode::OK, PROMETHEUS_TEXT, "Prometheus text.")
}
