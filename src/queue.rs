//! The planner and the engine thread. Sees `domain::engine::StepEngine` only, never candle.
//!
//! Owns the line of waiting jobs of one engine, its bound, and the thread the engine lives on. A job's way in is
//! [`Queue::reserve`] (a place, or a refusal now) and [`Place::submit`]; its way out is [`event::JobEvents`]. Must not
//! know who asked for a picture, where it goes, or that there is a database.

pub mod event;
mod guarded;
mod line;
mod places;
pub mod planner;
mod previews;
mod rounds;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::engine::{EngineError, StepEngine};
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::domain::spec::GenerateSpec;
use event::JobEvents;
use line::{Entry, Line};
use places::{PlaceHold, Places};
pub use previews::Previews;

/// Builds the engine on its own thread; called again after the engine failed.
pub type EngineFactory = Box<dyn Fn() -> Result<Box<dyn StepEngine>, EngineError> + Send>;

/// What one engine's queue is held to.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// The model the engine draws with; names its thread, its metrics and its log lines.
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
}

/// How the engine is.
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
    /// Likely time to its end, from the measured time per token. `None` before anything was measured.
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

/// One engine's queue. Clones share it.
#[derive(Clone)]
pub struct Queue {
    line: Arc<Line>,
    places: Arc<Places>,
}

/// The right to submit one job. Given back when dropped, and when the job has ended and its listener is gone.
#[must_use = "a place that is dropped is given back"]
pub struct Place {
    queue: Queue,
    owner: KeyId,
    hold: PlaceHold,
}

impl Queue {
    /// Starts the engine's thread, which builds the engine and draws the warm-up picture.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: QueueSettings, factory: EngineFactory) -> std::io::Result<Self> {
        let places = Arc::new(Places::new(settings.jobs_max));
        let line = Arc::new(Line::new());
        let name = format!("engine {}", settings.model);
        let worker = worker::Worker::new(Arc::clone(&line), settings);
        std::thread::Builder::new().name(name).spawn(move || worker.run(&factory))?;
        Ok(Self { line, places })
    }

    /// Takes a place for a job of `owner`, or refuses at once. One owner gets half of the places at most, so that others
    /// always find some.
    ///
    /// # Errors
    /// When the queue or the owner's share of it is full, or it drains.
    pub fn reserve(&self, owner: KeyId) -> Result<Place, ReserveError> {
        self.place_for(owner, self.places.take_within_share(owner))
    }

    /// As [`Queue::reserve`], for a job that was accepted in an earlier life: it has had its share then.
    ///
    /// # Errors
    /// When the queue is full or drains.
    pub fn reserve_again(&self, owner: KeyId) -> Result<Place, ReserveError> {
        self.place_for(owner, self.places.take(owner))
    }

    fn place_for(&self, owner: KeyId, hold: Option<PlaceHold>) -> Result<Place, ReserveError> {
        if self.line.is_draining() {
            return Err(ReserveError::Draining);
        }
        let Some(hold) = hold else {
            return Err(ReserveError::Full { retry_after_seconds: self.retry_after_seconds() });
        };
        Ok(Place { queue: self.clone(), owner, hold })
    }

    /// When a job is likely to end.
    pub fn retry_after_seconds(&self) -> u64 {
        self.line.seconds_until_somebody_leaves().unwrap_or(1.0).ceil().max(1.0) as u64
    }

    /// Cancels a job: out of the line at once, out of a running batch before the next step. Unknown jobs are ignored.
    pub fn cancel(&self, id: JobId) {
        self.line.cancel(id);
    }

    /// Where a job stands; `None` when it is not here (any more).
    pub fn standing(&self, id: JobId) -> Option<Standing> {
        self.line.standing(id)
    }

    /// What there is to do now.
    pub fn load(&self) -> Load {
        let (waiting, drawing) = self.line.load();
        Load { waiting, drawing, jobs_max: self.places.jobs_max() }
    }

    /// How the engine is, now and as it changes.
    pub fn state(&self) -> watch::Receiver<EngineState> {
        self.line.state()
    }

    /// Refuses newcomers from now on. Who has a place is still drawn.
    pub fn drain(&self) {
        self.line.drain();
    }

    /// Stops the engine's thread after what it is doing now. Unfinished jobs end without an outcome.
    pub fn close(&self) {
        self.line.close();
    }
}

impl Place {
    /// Puts a job into the line, behind the owner's others.
    pub fn submit(self, id: JobId, spec: GenerateSpec) -> JobEvents {
        let (events, mut listener) = event::channel();
        let hold = Arc::new(self.hold);
        listener.hold = Some(Arc::clone(&hold));
        self.queue.line.push(Entry { id, owner: self.owner, spec, events, restarts: 0, _hold: hold });
        listener
    }
}

#[cfg(test)]
mod tests;
