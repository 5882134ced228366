//! The planner and the engine thread. Sees `domain::engine::StepEngine` only, never candle.
//!
//! Owns the pending jobs of one model, their bound, and its engines' threads: one per device, all fed from the same
//! queue. A job enters by [`Queue::reserve`] (a reservation, or a refusal now) and [`Reservation::submit`]; what
//! happens to it comes out as [`event::JobEvents`]. Must not know who asked for an image, where it goes, or that there
//! is a database.

pub mod cost;
mod drafts;
mod entry;
pub mod event;
mod forecast;
mod guarded;
pub mod ledger;
pub mod planner;
mod previews;
mod reservations;
mod shared;
mod terms;
mod watchdog;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Span;

use crate::domain::ids::{JobId, KeyId};
use crate::domain::owner_counts::OwnerHold;
use crate::domain::spec::GenerateSpec;
pub use drafts::{DraftMemory, Drafts, ShownDraft};
use entry::Entry;
use event::JobEvents;
pub use previews::Previews;
use reservations::Reservations;
use shared::SharedQueue;
pub use terms::{CancelCause, EngineFactory, EngineState, Load, QueueSettings, ReserveError, Standing, Terms};
pub use watchdog::Stall;

/// One model's queue. Clones share it.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<SharedQueue>,
    reservations: Arc<Reservations>,
    stall_min: Duration,
}

/// The right to submit one job. Released when dropped, or when the job has ended and its listener is gone.
#[must_use = "a dropped reservation is released"]
pub struct Reservation {
    queue: Queue,
    owner: KeyId,
    hold: OwnerHold,
    span: Span,
    drafts: Drafts,
}

impl Queue {
    /// Starts a thread for each engine, which builds it and generates the warm-up images.
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
            // The threads already started must end.
            started.inspect_err(|_| shared.close())?;
        }
        Ok(Self { shared, reservations, stall_min: settings.stall_min })
    }

    /// Reserves room for a job of `owner`, or refuses at once. No owner holds more reservations than are left free for
    /// others: half of them as the only owner, a third beside another such.
    ///
    /// # Errors
    /// When the queue or the owner's share of it is full, or it drains.
    pub fn reserve(&self, owner: KeyId) -> Result<Reservation, ReserveError> {
        self.reservation_for(owner, self.reservations.take_within_share(owner))
    }

    /// As [`Queue::reserve`], for a job accepted before a restart: its owner's share was checked then.
    ///
    /// # Errors
    /// When the queue is full or drains.
    pub fn reserve_again(&self, owner: KeyId) -> Result<Reservation, ReserveError> {
        self.reservation_for(owner, self.reservations.take(owner))
    }

    fn reservation_for(&self, owner: KeyId, hold: Option<OwnerHold>) -> Result<Reservation, ReserveError> {
        if self.shared.is_draining() {
            return Err(ReserveError::Draining);
        }
        let Some(hold) = hold else {
            return Err(ReserveError::Full { retry_after_seconds: self.retry_after_seconds() });
        };
        Ok(Reservation { queue: self.clone(), owner, hold, span: Span::none(), drafts: Drafts::default() })
    }

    /// When a job is likely to end.
    pub fn retry_after_seconds(&self) -> u64 {
        self.shared.seconds_until_next_end().unwrap_or(1.0).ceil().max(1.0) as u64
    }

    /// Cancels a job: at once while pending, before the next step while running. Unknown jobs are ignored.
    pub fn cancel(&self, id: JobId, cause: CancelCause) {
        self.shared.cancel(id, cause);
    }

    /// Standing of a job; `None` when it is not in this queue (any more).
    pub fn standing(&self, id: JobId) -> Option<Standing> {
        self.shared.standing(id)
    }

    /// Pending and running jobs now.
    pub fn load(&self) -> Load {
        let (waiting, running) = self.shared.load();
        Load { waiting, running, jobs_max: self.reservations.jobs_max() }
    }

    /// How many engines are ready, and how many there are.
    pub fn engines(&self) -> (usize, usize) {
        self.shared.engines()
    }

    /// Why an engine is considered stalled; `None` when none is.
    pub fn stall(&self) -> Option<Stall> {
        self.shared.stall(self.stall_min)
    }

    /// The engines' state, now and as it changes.
    pub fn state(&self) -> watch::Receiver<EngineState> {
        self.shared.state()
    }

    /// Refuses new jobs from now on. Jobs with a reservation still run.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Stops the engines' threads after their current call. Unfinished jobs end without an outcome.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Reservation {
    /// Sets the job's span: whatever is logged about the job goes under it.
    pub fn within(self, span: Span) -> Self {
        Self { span, ..self }
    }

    /// Sets the drafts that a reader wants of the job.
    pub fn with_drafts(self, drafts: Drafts) -> Self {
        Self { drafts, ..self }
    }

    /// Puts a job into the queue.
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
            drafts: self.drafts,
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
