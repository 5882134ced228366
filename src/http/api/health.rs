//! Liveness, readiness and metrics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiError, ErrorCode};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::jobs::JobsError;

/// A database that takes longer to write counts as unavailable.
const WRITE_CHECK_DEADLINE: Duration = Duration::from_secs(5);
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The worker's health.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(in crate::http) struct HealthView {
    status: &'static str,
    /// What works less well than it should, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    degraded: Vec<String>,
}

/// Succeeds unless an engine has stalled in a way that only a restart can fix.
pub(in crate::http) async fn alive(State(state): State<HttpState>) -> Result<Json<HealthView>, ApiError> {
    match state.jobs.stalled() {
        None => Ok(Json(HealthView { status: "ok", degraded: Vec::new() })),
        Some(why) => Err(ApiError::new(ErrorCode::EngineStalled).with_cause(&why).with_detail(why)),
    }
}

pub(in crate::http) fn alive_operation() -> Operation {
    Operation::new(Tag::Health, "get_health", "Liveness: whether the worker needs no restart")
        .description(
            "Fails if an engine has spent 60 times the expected time, and at least a minute, on one operation, or was \
             rebuilt three times without generating an image. The supervisor should then restart the worker, which \
             generates the accepted jobs.",
        )
        .answers::<HealthView>(StatusCode::OK, "No restart is needed.")
        .refuses([ErrorCode::EngineStalled])
}

/// Succeeds if the database accepts writes and images can be stored, and an engine is warmed up and has not failed since.
pub(in crate::http) async fn ready(State(state): State<HttpState>) -> Result<Json<HealthView>, ApiError> {
    let not_ready = |detail| ApiError::new(ErrorCode::NotReady).with_detail(detail);
    if state.jobs.is_draining() {
        return Err(not_ready("the worker is shutting down"));
    }
    if !state.catalog.any_ready() {
        return Err(not_ready("no engine is ready"));
    }
    accepts_writes(&state).await.map_err(not_ready)?;
    Ok(Json(HealthView { status: "ready", degraded: state.jobs.results_outage().into_iter().collect() }))
}

pub(in crate::http) fn ready_operation() -> Operation {
    Operation::new(Tag::Health, "get_readiness", "Readiness: whether the worker can generate images now")
        .answers::<HealthView>(
            StatusCode::OK,
            "The database accepts writes, images can be stored, and an engine is ready. `degraded` is there while images wait \
             on the worker's disk because their bucket does not accept them.",
        )
        .refuses([ErrorCode::NotReady])
}

async fn accepts_writes(state: &HttpState) -> Result<(), &'static str> {
    let check = async {
        let (database, results) = tokio::join!(
            succeeds_in_time("the database", state.jobs.check_writable()),
            succeeds_in_time("results", state.jobs.check_results())
        );
        match (database, results) {
            (false, _) => Err("the database does not accept writes"),
            (true, false) => Err(state.jobs.results_fault()),
            (true, true) => Ok(()),
        }
    };
    state.0.write_check.outcome(check).await
}

/// Whether a check succeeds in time.
async fn succeeds_in_time(what: &'static str, check: impl Future<Output = Result<(), JobsError>>) -> bool {
    match tokio::time::timeout(WRITE_CHECK_DEADLINE, check).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(what, error = &error as &dyn std::error::Error, "write check failed");
            false
        }
        Err(_) => {
            tracing::error!(what, deadline = ?WRITE_CHECK_DEADLINE, "write check timed out");
            false
        }
    }
}

type MetricsText = ([(HeaderName, &'static str); 1], String);

/// Prometheus text, without authentication, at its own address.
pub(in crate::http) async fn metrics(State(state): State<HttpState>) -> Result<MetricsText, ApiError> {
    let handle = state.metrics.as_ref().ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    Ok(([(CONTENT_TYPE, PROMETHEUS_TEXT)], handle.render()))
}

pub(in crate::http) fn metrics_operation() -> Operation {
    Operation::new(Tag::Health, "get_metrics", "Metrics, at their own address")
        .description("Served only at `metrics_listen`, which is 127.0.0.1:9090 by default.")
        .answers_text(StatusCode::OK, PROMETHEUS_TEXT, "Prometheus text.")
}
