//! `/v1/overview`: the worker's state, its queue, and the last hour.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::wire::overview::{LatencyView, MemoryView, OverviewView, QueueView};
use crate::http::api::catalog::runtime_model_views;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::telemetry::process;

pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<OverviewView>, ApiError> {
    let statistics = state.jobs.statistics().await?;
    let word = if state.jobs.is_draining() {
        "draining"
    } else if state.catalog.any_ready() {
        "ready"
    } else {
        "not_ready"
    };
    Ok(Json(OverviewView {
        version: env!("CARGO_PKG_VERSION"),
        started_at: state.0.started_at,
        device: state.device.clone(),
        state: word,
        models: runtime_model_views(&state.catalog),
        queue: QueueView { queued: statistics.waiting, running: statistics.running, jobs_max: statistics.jobs_max },
        latency_seconds: LatencyView::of(&statistics),
        minutes: statistics.minutes.into_iter().map(Into::into).collect(),
        memory: MemoryView { resident_bytes: process::resident_bytes() },
    }))
}

pub(in crate::http) fn show_operation() -> Operation {
    Operation::new(Tag::Console, "get_overview", "Worker state, queue, and the last hour")
        .answers::<OverviewView>(StatusCode::OK, "The present state.")
        .refuses([ErrorCode::StorageUnavailable])
}
