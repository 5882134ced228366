//! What the callers and the engine thread share: the line of waiting jobs, wishes to cancel, and a picture of what is
//! being drawn. Every lock is held for a few copies only, never over an engine call.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::event::{EventSender, JobFailure, QueueEvent};
use super::places::PlaceHold;
use super::planner::Admitted;
use super::rounds::Rounds;
use super::{EngineState, Standing};
use crate::domain::ids::{JobId, KeyId};
use crate::domain::spec::GenerateSpec;

/// Weight of the newest measurement in the running mean of the time per token.
const COST_SMOOTHING: f64 = 0.2;

/// A job on its way through the queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) spec: GenerateSpec,
    pub(super) events: EventSender,
    /// How often its drawing was begun anew to make room for others.
    pub(super) restarts: u32,
    pub(super) _hold: Arc<PlaceHold>,
}

impl Entry {
    /// Tokens it takes from first step to last.
    fn work_tokens(&self) -> f64 {
        f64::from(self.spec.steps()) * self.spec.step_tokens() as f64
    }

    pub(super) fn fail(self, code: &'static str, reason: impl Into<String>) {
        self.events.end(QueueEvent::Failed(JobFailure { code, reason: reason.into() }));
    }
}

#[derive(Default)]
struct Inner {
    waiting: Rounds<Entry>,
    /// At most as long as `admitted`.
    cancels: Vec<JobId>,
    admitted: Vec<Admitted>,
    draining: bool,
    closed: bool,
    seconds_per_token: Option<f64>,
}

pub(super) struct Line {
    inner: Mutex<Inner>,
    wake: Condvar,
    state: watch::Sender<EngineState>,
}

/// What the engine thread learns between two actions.
pub(super) struct News {
    pub(super) next_waiting: Option<JobId>,
    pub(super) waiting: usize,
    pub(super) cancels: Vec<JobId>,
    pub(super) closed: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        let (state, _) = watch::channel(EngineState::Loading);
        Self { inner: Mutex::default(), wake: Condvar::new(), state }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The callers' side.

    pub(super) fn push(&self, entry: Entry) {
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            drop(entry);
            return;
        }
        inner.waiting.push(entry.owner, entry);
        self.wake.notify_all();
    }

    pub(super) fn cancel(&self, id: JobId) {
        let mut inner = self.lock();
        let place = inner.waiting.iter().position(|entry| entry.id == id);
        if let Some(place) = place {
            let entry = inner.waiting.remove(place);
            drop(inner);
            if let Some(entry) = entry {
                entry.events.end(QueueEvent::Canceled);
            }
            return;
        }
        let is_admitted = inner.admitted.iter().any(|picture| picture.id == id);
        if is_admitted && !inner.cancels.contains(&id) {
            inner.cancels.push(id);
            self.wake.notify_all();
        }
    }

    pub(super) fn standing(&self, id: JobId) -> Option<Standing> {
        let inner = self.lock();
        let cost = inner.seconds_per_token;
        if let Some(picture) = inner.admitted.iter().find(|picture| picture.id == id) {
            return Some(Standing {
                position: 0,
                eta_seconds: cost.map(|cost| cost * inner.tokens_until_done(picture)),
            });
        }
        let place = inner.waiting.iter().position(|entry| entry.id == id)?;
        let ahead: f64 = inner.admitted.iter().map(remaining_tokens).sum();
        let waiting: f64 = inner.waiting.iter().take(place + 1).map(Entry::work_tokens).sum();
        Some(Standing { position: place + 1, eta_seconds: cost.map(|cost| cost * (ahead + waiting)) })
    }

    pub(super) fn seconds_until_somebody_leaves(&self) -> Option<f64> {
        let inner = self.lock();
        let tokens = inner.admitted.iter().map(|picture| inner.tokens_until_done(picture));
        Some(inner.seconds_per_token? * tokens.min_by(f64::total_cmp)?)
    }

    /// How many wait, and how many are being drawn.
    pub(super) fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.waiting.len(), inner.admitted.len())
    }

    pub(super) fn state(&self) -> watch::Receiver<EngineState> {
        self.state.subscribe()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.lock().draining
    }

    pub(super) fn drain(&self) {
        self.lock().draining = true;
    }

    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.draining = true;
        inner.closed = true;
        self.wake.notify_all();
    }

    // The engine thread's side.

    pub(super) fn set_state(&self, state: EngineState) {
        self.state.send_replace(state);
    }

    /// Shows what is being drawn.
    pub(super) fn show(&self, admitted: &[Admitted]) {
        let mut inner = self.lock();
        inner.admitted.clear();
        inner.admitted.extend_from_slice(admitted);
    }

    /// Takes what has happened meanwhile.
    pub(super) fn take_news(&self) -> News {
        let mut inner = self.lock();
        News {
            next_waiting: inner.waiting.first().map(|entry| entry.id),
            waiting: inner.waiting.len(),
            cancels: std::mem::take(&mut inner.cancels),
            closed: inner.closed,
        }
    }

    /// Takes the first in line if it is still `id`, and shows it as admitted, so that it can be cancelled from now on.
    pub(super) fn take_first(&self, id: JobId) -> Option<Entry> {
        let mut inner = self.lock();
        let entry = inner.waiting.pop_first_if(|first| first.id == id)?;
        let (steps, step_tokens) = (entry.spec.steps(), entry.spec.step_tokens());
        inner.admitted.push(Admitted { id, step: 0, steps, step_tokens, moved_in_turn: 0 });
        Some(entry)
    }

    /// Gives a job its old place at the head of the line.
    pub(super) fn put_back(&self, entry: Entry) {
        self.lock().waiting.put_back(entry.owner, entry);
    }

    /// Sleeps until there is something to do.
    pub(super) fn wait_for_work(&self) {
        let inner = self.lock();
        let idle = |inner: &mut Inner| inner.waiting.len() == 0 && inner.cancels.is_empty() && !inner.closed;
        drop(self.wake.wait_while(inner, idle).unwrap_or_else(PoisonError::into_inner));
    }

    /// Sleeps for `delay`; `false` when the queue was closed meanwhile.
    pub(super) fn sleep(&self, delay: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) =
            self.wake.wait_timeout_while(inner, delay, |inner| !inner.closed).unwrap_or_else(PoisonError::into_inner);
        !inner.closed
    }

    pub(super) fn note_cost(&self, tokens: usize, took: Duration) {
        let measured = took.as_secs_f64() / tokens.max(1) as f64;
        let mut inner = self.lock();
        let mean = inner.seconds_per_token.unwrap_or(measured);
        inner.seconds_per_token = Some(mean + COST_SMOOTHING * (measured - mean));
    }

    /// Tells everyone in line that they have waited in vain.
    pub(super) fn fail_waiting(&self) {
        let waiting = self.lock().waiting.take();
        for entry in waiting {
            entry.fail(JobFailure::ENGINE_UNAVAILABLE, "the model's engine could not be started for too long");
        }
    }

    /// The thread is going: whoever is left ends without an outcome.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.admitted.clear();
        let waiting = inner.waiting.take();
        drop(inner);
        drop(waiting);
    }
}

impl Inner {
    /// Tokens that go through the engine until `picture` is done, when everyone who is admitted steps together.
    fn tokens_until_done(&self, picture: &Admitted) -> f64 {
        let per_step: usize = self.admitted.iter().map(|other| other.step_tokens).sum();
        f64::from(picture.steps.saturating_sub(picture.step)) * per_step as f64
    }
}

fn remaining_tokens(picture: &Admitted) -> f64 {
    f64::from(picture.steps.saturating_sub(picture.step)) * picture.step_tokens as f64
}
