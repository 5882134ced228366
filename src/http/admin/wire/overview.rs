//! The overview in responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;

use crate::http::api::catalog::RuntimeModelView;
use crate::jobs::{Minute, Statistics};

/// The worker's state, its queue, and the last hour.
#[derive(Serialize, ToSchema)]
#[schema(as = Overview)]
pub(in crate::http) struct OverviewView {
    pub(in crate::http) version: &'static str,
    #[serde(with = "rfc3339")]
    pub(in crate::http) started_at: OffsetDateTime,
    /// The device that generates images.
    pub(in crate::http) device: String,
    /// `ready`, `not_ready` or `draining`.
    pub(in crate::http) state: &'static str,
    pub(in crate::http) models: Vec<RuntimeModelView>,
    pub(in crate::http) queue: QueueView,
    /// The last sixty minutes, the oldest first; the last one is not complete.
    pub(in crate::http) minutes: Vec<MinuteView>,
    pub(in crate::http) latency_seconds: LatencyView,
    pub(in crate::http) memory: MemoryView,
}

/// The load of the queue.
#[derive(Serialize, ToSchema)]
#[schema(as = QueueLoad)]
pub(in crate::http) struct QueueView {
    pub(in crate::http) queued: usize,
    pub(in crate::http) running: usize,
    /// The maximum of both together.
    pub(in crate::http) jobs_max: usize,
}

/// Jobs that ended in one minute.
#[derive(Serialize, ToSchema)]
#[schema(as = Minute)]
pub(in crate::http) struct MinuteView {
    /// The start of the minute.
    #[serde(with = "rfc3339")]
    at: OffsetDateTime,
    images: u64,
    failed: u64,
}

impl From<Minute> for MinuteView {
    fn from(minute: Minute) -> Self {
        Self { at: minute.at, images: minute.images, failed: minute.failed }
    }
}

/// The time from a job's acceptance to its end, over the images of the last hour.
#[derive(Serialize, ToSchema)]
#[schema(as = Latency)]
pub(in crate::http) struct LatencyView {
    jobs: usize,
    median: Option<f64>,
    p95: Option<f64>,
}

impl LatencyView {
    pub(in crate::http) fn of(statistics: &Statistics) -> Self {
        let quantile = |share| statistics.latency_quantile(share).map(|latency| latency.as_secs_f64());
        Self { jobs: statistics.latencies.len(), median: quantile(0.5), p95: quantile(0.95) }
    }
}

/// The memory of the process.
#[derive(Serialize, ToSchema)]
#[schema(as = Memory)]
pub(in crate::http) struct MemoryView {
    /// `null` if unknown on this system.
    pub(in crate::http) resident_bytes: Option<u64>,
}
