//! What the callers and the engines' threads share: the jobs that wait, wishes to cancel, an image of what is being
//! drawn, and who has had how much. Every lock is held for a few copies only, never over an engine call.

mod forecasts;
mod stalls;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forecasts::Reading;
use tokio::sync::watch;

use super::cost::{CostModel, WorkScale};
use super::entry::{ActiveJob, Entry};
use super::event::{JobFailure, QueueEvent};
use super::ledger::{Ledger, Share};
use super::planner::Candidate;
use super::watchdog::Watch;
use super::{CancelCause, EngineState};
use crate::domain::ids::JobId;
use crate::domain::priority::Priority;
use crate::telemetry::metrics::{self, Waiting};

/// One engine, as the others see it.
struct Side {
    admitted: Vec<ActiveJob>,
    /// At most as long as `admitted`.
    cancels: Vec<(JobId, CancelCause)>,
    costs: CostModel,
    scale: WorkScale,
    state: EngineState,
    is_warmed_up: bool,
    /// How often it has failed since it finished an image, once it had drawn.
    failures: u32,
    watch: Arc<Watch>,
}

struct Inner {
    waiting: Vec<Entry>,
    engines: Vec<Side>,
    ledger: Ledger,
    draining: bool,
    closed: bool,
    /// Since when no engine has been ready.
    down_since: Option<Instant>,
    /// Another one as soon as somebody comes, is taken up or leaves.
    crowd: u64,
}

pub(super) struct SharedQueue {
    inner: Mutex<Inner>,
    wake: Condvar,
    state: watch::Sender<EngineState>,
    epoch: Instant,
    /// Always locked before `inner`. Who asks while it is worked out waits for it, and does not work it out again.
    forecast: Mutex<Option<Reading>>,
}

/// What an engine's thread learns between two actions.
pub(super) struct Updates {
    pub(super) candidates: Vec<Candidate>,
    pub(super) ledger: Ledger,
    pub(super) costs: CostModel,
    pub(super) cancels: Vec<(JobId, CancelCause)>,
    pub(super) others_idle: bool,
    pub(super) closed: bool,
}

impl SharedQueue {
    /// For so many engines.
    pub(super) fn new(engines: usize) -> Self {
        let (state, _) = watch::channel(EngineState::Loading);
        let side = || Side {
            admitted: Vec::new(),
            cancels: Vec::new(),
            costs: CostModel::default(),
            scale: WorkScale { attention_balance_tokens: usize::MAX },
            state: EngineState::Loading,
            is_warmed_up: false,
            failures: 0,
            watch: Arc::default(),
        };
        let inner = Inner {
            waiting: Vec::new(),
            engines: std::iter::repeat_with(side).take(engines).collect(),
            ledger: Ledger::default(),
            draining: false,
            closed: false,
            down_since: Some(Instant::now()),
            crowd: 0,
        };
        let epoch = Instant::now();
        Self { inner: Mutex::new(inner), wake: Condvar::new(), state, epoch, forecast: Mutex::new(None) }
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
        inner.waiting.push(entry);
        inner.crowd += 1;
        self.wake.notify_all();
    }

    pub(super) fn cancel(&self, id: JobId, cause: CancelCause) {
        let mut inner = self.lock();
        if let Some(place) = inner.waiting.iter().position(|entry| entry.id == id) {
            let entry = inner.waiting.remove(place);
            inner.crowd += 1;
            drop(inner);
            metrics::job_canceled(cause.as_str());
            entry.events.end(QueueEvent::Canceled);
            return;
        }
        let holder = inner.engines.iter_mut().find(|side| side.admitted.iter().any(|shown| shown.id == id));
        if let Some(side) = holder
            && side.cancels.iter().all(|(wished, _)| *wished != id)
        {
            side.cancels.push((id, cause));
            self.wake.notify_all();
        }
    }

    /// How many wait, and how many are being drawn.
    pub(super) fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.waiting.len(), inner.engines.iter().map(|side| side.admitted.len()).sum())
    }

    /// How many engines are ready, and how many there are.
    pub(super) fn engines(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.engines.iter().filter(|side| side.state == EngineState::Ready).count(), inner.engines.len())
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

    // The engines' side.

    pub(super) fn set_state(&self, engine: usize, state: EngineState) {
        let mut inner = self.lock();
        let side = &mut inner.engines[engine];
        side.is_warmed_up |= state == EngineState::Ready;
        side.failures += u32::from(side.is_warmed_up && matches!(state, EngineState::Rebuilding { .. }));
        side.state = state;
        inner.crowd += 1;
        let all = inner.state();
        match (&all, inner.down_since) {
            (EngineState::Ready, _) => inner.down_since = None,
            (_, None) => inner.down_since = Some(Instant::now()),
            (_, Some(_)) => {}
        }
        drop(inner);
        self.state.send_replace(all);
    }

    /// How long no engine has been ready.
    pub(super) fn down_for(&self) -> Duration {
        self.lock().down_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn set_costs(&self, engine: usize, costs: CostModel, scale: WorkScale) {
        let mut inner = self.lock();
        let side = &mut inner.engines[engine];
        (side.costs, side.scale) = (costs, scale);
    }

    pub(super) fn update_costs(&self, engine: usize, update: impl FnOnce(&mut CostModel)) {
        update(&mut self.lock().engines[engine].costs);
    }

    /// Shows what an engine holds.
    pub(super) fn show(&self, engine: usize, admitted: &[ActiveJob]) {
        let mut inner = self.lock();
        let side = &mut inner.engines[engine];
        let is_same = side.admitted.iter().map(|shown| shown.id).eq(admitted.iter().map(|shown| shown.id));
        inner.crowd += u64::from(!is_same);
        let side = &mut inner.engines[engine];
        side.admitted.clear();
        side.admitted.extend_from_slice(admitted);
    }

    /// Takes what has happened meanwhile, and ends those whose deadline has passed while they waited.
    pub(super) fn take_news(&self, engine: usize) -> Updates {
        let mut inner = self.lock();
        let late = inner.take_late(Instant::now());
        let costs = inner.engines[engine].costs;
        let is_idle = |(other, side): (usize, &Side)| {
            other != engine && side.state == EngineState::Ready && side.admitted.is_empty()
        };
        let news = Updates {
            candidates: inner.candidates(engine, self.epoch),
            ledger: inner.ledger.clone(),
            costs,
            cancels: std::mem::take(&mut inner.engines[engine].cancels),
            others_idle: inner.engines.iter().enumerate().any(is_idle),
            closed: inner.closed,
        };
        drop(inner);
        late.into_iter().for_each(Entry::end_late);
        news
    }

    /// Takes a job that waits, if it still does, and shows it as admitted, so that it can be cancelled from now on.
    pub(super) fn take(&self, engine: usize, id: JobId) -> Option<Entry> {
        let mut inner = self.lock();
        let place = inner.waiting.iter().position(|entry| entry.id == id)?;
        let entry = inner.waiting.remove(place);
        let side = &mut inner.engines[engine];
        side.admitted.push(ActiveJob::new(&entry, side.scale));
        inner.crowd += 1;
        Some(entry)
    }

    /// Lets a job wait again. It keeps the moment it came.
    pub(super) fn put_back(&self, entry: Entry) {
        entry.events.put_back();
        let mut inner = self.lock();
        inner.waiting.push(entry);
        inner.crowd += 1;
        drop(inner);
        self.wake.notify_all();
    }

    /// Counts time of an engine for those it was spent on, against all who have something to draw.
    pub(super) fn note_time(&self, engine: usize, served: &[Share], took: Duration) {
        let mut inner = self.lock();
        let present = inner.waiting.iter().map(|entry| (entry.owner, entry.terms));
        let admitted = inner.engines.iter().flat_map(|side| &side.admitted).map(|shown| (shown.owner, shown.terms));
        let mut shares: Vec<Share> = present
            .chain(admitted)
            .map(|(owner, terms)| Share { owner, weight: terms.owner_priority.weight(), part: 0.0 })
            .collect();
        shares.extend_from_slice(served);
        let work = inner.engines[engine].costs.work_of(took.as_secs_f64());
        inner.ledger.note(&shares, work);
    }

    /// Sleeps until there is something to do.
    pub(super) fn wait_for_work(&self, engine: usize) {
        let inner = self.lock();
        let idle =
            |inner: &mut Inner| inner.waiting.is_empty() && inner.engines[engine].cancels.is_empty() && !inner.closed;
        drop(self.wake.wait_while(inner, idle).unwrap_or_else(PoisonError::into_inner));
    }

    /// Sleeps for `delay`; `false` when the queue was closed meanwhile.
    pub(super) fn sleep(&self, delay: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) =
            self.wake.wait_timeout_while(inner, delay, |inner| !inner.closed).unwrap_or_else(PoisonError::into_inner);
        !inner.closed
    }

    /// Ends those in line whose deadline has passed: for when no engine comes by to do it.
    pub(super) fn end_late(&self) {
        let late = self.lock().take_late(Instant::now());
        late.into_iter().for_each(Entry::end_late);
    }

    /// Tells everyone in line that they have waited in vain.
    pub(super) fn fail_waiting(&self) {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.waiting);
        inner.crowd += 1;
        drop(inner);
        for entry in waiting {
            entry.fail(JobFailure::ENGINE_UNAVAILABLE, "the model's engine could not be started for too long");
        }
    }

    /// An engine's thread is going. With the last one, whoever is left ends without an outcome.
    pub(super) fn abandon(&self, engine: usize) {
        let mut inner = self.lock();
        inner.engines[engine].admitted.clear();
        inner.crowd += 1;
        let is_last = inner.engines.iter().all(|side| side.state == EngineState::Gone);
        let waiting = if is_last || inner.closed { std::mem::take(&mut inner.waiting) } else { Vec::new() };
        inner.closed |= is_last;
        drop(inner);
        drop(waiting);
    }

    /// Tells the metrics how many wait.
    pub(super) fn count(&self, model: &str) {
        let inner = self.lock();
        let mut waiting = Waiting::default();
        for entry in &inner.waiting {
            match entry.terms.owner_priority {
                Priority::Low => waiting.low += 1,
                Priority::Normal => waiting.normal += 1,
                Priority::High => waiting.high += 1,
            }
        }
        let admitted = inner.engines.iter().map(|side| side.admitted.len()).sum();
        drop(inner);
        metrics::queue_depth(model, waiting, admitted);
    }
}

impl Inner {
    /// The state of all engines together: ready as soon as one is.
    fn state(&self) -> EngineState {
        let states = || self.engines.iter().map(|side| &side.state);
        if states().any(|state| *state == EngineState::Ready) {
            return EngineState::Ready;
        }
        let rebuilding = states().find(|state| matches!(state, EngineState::Rebuilding { .. }));
        let loading = states().find(|state| **state == EngineState::Loading);
        loading.or(rebuilding).cloned().unwrap_or(EngineState::Gone)
    }

    fn take_late(&mut self, now: Instant) -> Vec<Entry> {
        let late: Vec<Entry> = self.waiting.extract_if(.., |entry| entry.is_late(now)).collect();
        self.crowd += late.len() as u64;
        late
    }

    /// Who waits, and who is in this engine.
    fn candidates(&self, engine: usize, epoch: Instant) -> Vec<Candidate> {
        let side = &self.engines[engine];
        let now = epoch.elapsed().as_secs_f64();
        let candidate = |shown: &ActiveJob, is_admitted: bool| Candidate {
            id: shown.id,
            owner: shown.owner,
            weight: shown.terms.owner_priority.weight(),
            rank: shown.urgency(epoch, &side.costs).rank(now),
            step_tokens: shown.step_tokens,
            step_work: shown.step_work,
            steps_left: shown.steps_left,
            is_suspect: shown.is_suspect,
            is_admitted,
        };
        let admitted = side.admitted.iter().map(|shown| candidate(shown, true));
        let waiting = self.waiting.iter().map(|entry| candidate(&ActiveJob::new(entry, side.scale), false));
        admitted.chain(waiting).collect()
    }
}
