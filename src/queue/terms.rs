//! What callers give to a queue and get from it: settings, terms, states and refusals.

use std::time::{Duration, Instant};

use crate::domain::engine::{EngineError, StepEngine};
use crate::domain::ids::ModelId;
use crate::domain::priority::Priority;
use crate::domain::spec::GenerateSpec;

/// Builds an engine on its own thread; called again after the engine failed.
pub type EngineFactory = Box<dyn Fn() -> Result<Box<dyn StepEngine>, EngineError> + Send>;

/// Settings of one model's queue.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// The model; names the threads, metrics and log lines.
    pub model: ModelId,
    /// Maximum jobs waiting and running together.
    pub jobs_max: usize,
    /// Generated once before an engine counts as ready.
    pub warm_up: GenerateSpec,
    /// Wait before an engine is rebuilt; doubled before each further attempt, up to the longest. Rebuilding never
    /// stops: a device may recover, and then the worker does without an operator.
    pub rebuild_delay: Duration,
    /// The longest such wait.
    pub rebuild_delay_max: Duration,
    /// How long accepted jobs wait for an engine that cannot be built. Then they fail, so that their clients know.
    pub outage_max: Duration,
    /// An engine call shorter than this never counts as stalled, whatever was expected of it.
    pub stall_min: Duration,
}

/// Scheduling terms of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Orders the jobs of one owner.
    pub priority: Priority,
    /// Sets the owner's share of the device, relative to other owners.
    pub owner_priority: Priority,
    /// When the image is of no more use: then the job fails.
    pub deadline: Option<Instant>,
    /// It was running when the process crashed, and may be the cause: it runs unbatched.
    pub is_suspect: bool,
}

/// Why a job was canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelCause {
    /// An authorized caller asked for it.
    Request,
    /// The waiting client disconnected.
    Disconnect,
    /// Its key is no longer valid.
    KeyEnded,
    /// Its deadline passed.
    Deadline,
}

impl CancelCause {
    /// The metrics label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Disconnect => "disconnect",
            Self::KeyEnded => "key_ended",
            Self::Deadline => "deadline",
        }
    }
}

/// State of an engine, or of a queue's engines together: ready as soon as one is, unless a device is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// Being built for the first time.
    Loading,
    /// It has generated an image, and has not failed since.
    Ready,
    /// It failed, and is being rebuilt.
    Rebuilding {
        /// Why it failed last. For operators, not for clients.
        cause: String,
        /// Failed builds in a row; 0 when it had been ready.
        builds_failed: u32,
    },
    /// Its device is lost to this process. It will generate nothing more; jobs wait for the next process.
    DeviceLost {
        /// The driver's words. For operators, not for clients.
        cause: String,
    },
    /// Its thread has ended, by a bug. It will generate nothing more.
    Gone,
}

/// Why a reservation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// As many jobs as allowed wait and run, of all owners or of this one.
    #[error("the queue is full")]
    Full {
        /// When a reservation is likely to be free.
        retry_after_seconds: u64,
    },
    /// The worker is shutting down and accepts no more jobs.
    #[error("the worker is shutting down")]
    Draining,
}

/// Standing of an unfinished job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// 0: running; 1: next in the queue.
    pub position: usize,
    /// Likely time to its end, from measured step times. `None` before anything was measured.
    pub eta_seconds: Option<f64>,
}

/// Load of a queue now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Pending jobs.
    pub waiting: usize,
    /// Running jobs.
    pub running: usize,
    /// Maximum pending and running jobs together.
    pub jobs_max: usize,
}
