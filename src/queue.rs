//! The planner and the engine thread. Sees `domain::engine::StepEngine` only, never candle.
//!
//! Owns the jobs that wait for one model's engines, their bound, and the threads the engines live on: one for each device,
//! all drawing from the same line. A job's way in is
//! [`Queue::reserve`] (a place, or a refusal now) and [`Reservation::submit`]; its way out is [`event::JobEvents`]. Must not
//! know who asked for an image, where it goes, or that there is a database.

pub mod cost;
mod entry;
pub mod event;
mod forecast;
mod guarded;
pub mod ledger;
pub mod planner;
mod previews;
mod reservations;
mod shared;
mod watchdog;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Span;

use crate::domain::engine::{EngineError, StepEngine};
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::priority::Priority;
use crate::domain::spec::GenerateSpec;
use entry::Entry;
use event::JobEvents;
pub use previews::Previews;
use reservations::{ReservationHold, Reservations};
use shared::SharedQueue;
pub use watchdog::Stall;

/// Builds the engine on its own thread; called again after the engine failed.
pub type EngineFactory = Box<dyn Fn() -> Result<Box<dyn StepEngine>, EngineError> + Send>;

/// What one model's queue is held to.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// The model the engines draw with; names its thread, its metrics and its log lines.
    pub model: ModelId,
    /// Most jobs waiting and running together.
    pub jobs_max: usize,
    /// Drawn once before the engine is called ready.
    pub warm_up: GenerateSpec,
    /// Wait before an engine is built again; doubled before each further attempt, up to the longest. It is never given
    /// up: what is wrong with a device may pass, and a worker that comes back by itself needs nobody at night.
    pub rebuild_delay: Duration,
    /// The longest such wait.
    pub rebuild_delay_max: Duration,
    /// How long accepted jobs wait for an engine that cannot be built. Then they fail: whoever waits should know.
    pub outage_max: Duration,
    /// A call of the engine that takes less is no sign that it will not come back, whatever was expected of it.
    pub stall_min: Duration,
}

/// On what terms a job is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Its place among the jobs of the same owner.
    pub priority: Priority,
    /// The owner's part of the device, next to other owners'.
    pub owner_priority: Priority,
    /// When the image is of no use any more: then the job fails.
    pub deadline: Option<Instant>,
    /// It was being drawn when the process ended without a word, and may be why: it rides alone.
    pub is_suspect: bool,
}

/// Why a job was not drawn to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelCause {
    /// Whoever may asked for it.
    Request,
    /// Who waited has left.
    Disconnect,
    /// Its key is good no more.
    KeyEnded,
    /// Its time was over.
    Deadline,
}

impl CancelCause {
    /// The word for it in metrics.
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

/// How an engine is; of a queue, how its engines are together: ready as soon as one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// Being built for the first time.
    Loading,
    /// It has drawn, and has not failed since.
    Ready,
    /// It failed, and is being built again.
    Rebuilding {
        /// Why it failed last. For operators, not for clients.
        cause: String,
        /// Attempts in a row to build it that failed; 0 when it had been ready.
        builds_failed: u32,
    },
    /// Its thread is gone, by a mistake of ours. Nothing more will be drawn.
    Gone,
}

/// Why no place was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// As many jobs as are allowed wait and run, of all owners or of this one.
    #[error("the queue is full")]
    Full {
        /// When a place is likely to be free.
        retry_after_seconds: u64,
    },
    /// The worker is going down and takes no more.
    #[error("the worker is shutting down")]
    Draining,
}

/// Where an unfinished job stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// 0: being drawn; 1: next in line.
    pub position: usize,
    /// Likely time to its end, from the measured time of steps. `None` before anything was measured.
    pub eta_seconds: Option<f64>,
}

/// What a queue has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Jobs in line.
    pub waiting: usize,
    /// Jobs being drawn.
    pub drawing: usize,
    /// Most jobs in line and being drawn together.
    pub jobs_max: usize,
}

/// One model's queue. Clones share it.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<SharedQueue>,
    reservations: Arc<Reservations>,
    stall_min: Duration,
}

/// The right to submit one job. Given back when dropped, and when the job has ended and its listener is gone.
#[must_use = "a reservation that is dropped is given back"]
pub struct Reservation {
    queue: Queue,
    owner: KeyId,
    hold: ReservationHold,
    span: Span,
}

impl Queue {
    /// Starts a thread for each engine, which builds it and draws the warm-up image.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: &QueueSettings, factories: Vec<EngineFactory>) -> std::io::Result<Self> {
        let reservations = Arc::new(Reservations::new(settings.jobs_max));
        let shared = Arc::new(SharedQueue::new(factories.len()));
        for (engine, factory) in factories.into_iter().enumerate() {
            let worker = worker::Worker::new(Arc::clone(&shared), engine, settings.clone());
            let name = format!("engine {engine} {}", settings.model);
            let started = std::thread::Builder::new().name(name).spawn(move || worker.run(&factory));
            // Those that were started must not go on for nobody.
            started.inspect_err(|_| shared.close())?;
        }
        Ok(Self { shared, reservations, stall_min: settings.stall_min })
    }

    /// Takes a place for a job of `owner`, or refuses at once. No owner gets more places than are left free for others:
    /// half of them when it is alone, a third when there is another such.
    ///
    /// # Errors
    /// When the queue or the owner's share of it is full, or it drains.
    pub fn reserve(&self, owner: KeyId) -> Result<Reservation, ReserveError> {
        self.reservation_for(owner, self.reservations.take_within_share(owner))
    }

    /// As [`Queue::reserve`], for a job that was accepted in an earlier life: it has had its share then.
    ///
    /// # Errors
    /// When the queue is full or drains.
    pub fn reserve_again(&self, owner: KeyId) -> Result<Reservation, ReserveError> {
        self.reservation_for(owner, self.reservations.take(owner))
    }

    fn reservation_for(&self, owner: KeyId, hold: Option<ReservationHold>) -> Result<Reservation, ReserveError> {
        if self.shared.is_draining() {
            return Err(ReserveError::Draining);
        }
        let Some(hold) = hold else {
            return Err(ReserveError::Full { retry_after_seconds: self.retry_after_seconds() });
        };
        Ok(Reservation { queue: self.clone(), owner, hold, span: Span::none() })
    }

    /// When a job is likely to end.
    pub fn retry_after_seconds(&self) -> u64 {
        self.shared.seconds_until_somebody_leaves().unwrap_or(1.0).ceil().max(1.0) as u64
    }

    /// Cancels a job: out of the line at once, out of a running batch before the next step. Unknown jobs are ignored.
    pub fn cancel(&self, id: JobId, cause: CancelCause) {
        self.shared.cancel(id, cause);
    }

    /// Where a job stands; `None` when it is not here (any more).
    pub fn standing(&self, id: JobId) -> Option<Standing> {
        self.shared.standing(id)
    }

    /// What there is to do now.
    pub fn load(&self) -> Load {
        let (waiting, drawing) = self.shared.load();
        Load { waiting, drawing, jobs_max: self.reservations.jobs_max() }
    }

    /// How many engines are ready, and how many there are.
    pub fn engines(&self) -> (usize, usize) {
        self.shared.engines()
    }

    /// Why an engine is thought to draw nothing any more, however long one waits; `None` when none is.
    pub fn stall(&self) -> Option<Stall> {
        self.shared.stall(self.stall_min)
    }

    /// How the engines are, now and as it changes.
    pub fn state(&self) -> watch::Receiver<EngineState> {
        self.shared.state()
    }

    /// Refuses newcomers from now on. Who has a place is still drawn.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Stops the engines' threads after what it is doing now. Unfinished jobs end without an outcome.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Reservation {
    /// Gives the job a span, which what is logged about it stands in.
    pub fn within(self, span: Span) -> Self {
        Self { span, ..self }
    }

    /// Puts a job into the line.
    pub fn submit(self, id: JobId, spec: GenerateSpec, terms: Terms) -> JobEvents {
        let (events, mut listener) = event::channel();
        let hold = Arc::new(self.hold);
        listener.hold = Some(Arc::clone(&hold));
        self.queue.shared.push(Entry {
            id,
            owner: self.owner,
            spec,
            terms,
            arrived: Instant::now(),
            events,
            restarts: 0,
            engine_failures: 0,
            span: self.span,
            _hold: hold,
        });
        listener
    }
}

#[cfg(test)]
mod tests;
