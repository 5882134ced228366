//! State shared by callers and engine threads: pending jobs, cancel requests, a copy of what is running, and the
//! ledger. Every lock is held for a few copies only, never over an engine call.

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
use crate::domain::spec::GenerateSpec;
use crate::telemetry::metrics::{self, Waiting};

/// One engine, as other threads see it.
struct EngineView {
    admitted: Vec<ActiveJob>,
    /// At most as long as `admitted`.
    cancels: Vec<(JobId, CancelCause)>,
    costs: CostModel,
    scale: WorkScale,
    state: EngineState,
    is_warmed_up: bool,
    /// Failures since it last finished an image, once warmed up.
    failures: u32,
    watch: Arc<Watch>,
}

struct Inner {
    waiting: Vec<Entry>,
    engines: Vec<EngineView>,
    ledger: Ledger,
    draining: bool,
    closed: bool,
    /// Since when no engine has been ready.
    down_since: Option<Instant>,
    /// Changes whenever a job arrives, is admitted or leaves.
    version: u64,
}

pub(super) struct SharedQueue {
    inner: Mutex<Inner>,
    wake: Condvar,
    state: watch::Sender<EngineState>,
    epoch: Instant,
    /// Always locked before `inner`. A caller that asks during a computation waits for its result.
    forecast: Mutex<Option<Reading>>,
}

/// What an engine's thread reads between two actions.
pub(super) struct Updates {
    pub(super) candidates: Vec<Candidate>,
    pub(super) ledger: Ledger,
    pub(super) costs: CostModel,
    pub(super) cancels: Vec<(JobId, CancelCause)>,
    pub(super) others_idle: bool,
    pub(super) closed: bool,
}

impl SharedQueue {
    /// A queue for `engines` engines.
    pub(super) fn new(engines: usize) -> Self {
        let (state, _) = watch::channel(EngineState::Loading);
        let view = || EngineView {
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
            engines: std::iter::repeat_with(view).take(engines).collect(),
            ledger: Ledger::default(),
            draining: false,
            closed: false,
            down_since: Some(Instant::now()),
            version: 0,
        };
        let epoch = Instant::now();
        Self { inner: Mutex::new(inner), wake: Condvar::new(), state, epoch, forecast: Mutex::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Called by callers.

    pub(super) fn push(&self, entry: Entry) {
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            drop(entry);
            return;
        }
        inner.waiting.push(entry);
        inner.version += 1;
        self.wake.notify_all();
    }

    pub(super) fn cancel(&self, id: JobId, cause: CancelCause) {
        let mut inner = self.lock();
        if let Some(index) = inner.waiting.iter().position(|entry| entry.id == id) {
            let entry = inner.waiting.remove(index);
            inner.version += 1;
            drop(inner);
            metrics::job_canceled(cause.as_str());
            entry.events.end(QueueEvent::Canceled);
            return;
        }
        let holder = inner.engines.iter_mut().find(|view| view.admitted.iter().any(|job| job.id == id));
        if let Some(view) = holder
            && view.cancels.iter().all(|(canceled, _)| *canceled != id)
        {
            view.cancels.push((id, cause));
            self.wake.notify_all();
        }
    }

    /// Cancels those jobs whose cancellation an engine was told of, and that it has put back.
    pub(super) fn cancel_requeued(&self, engine: usize) {
        let cancels = std::mem::take(&mut self.lock().engines[engine].cancels);
        for (id, cause) in cancels {
            self.cancel(id, cause);
        }
    }

    /// Pending and running jobs.
    pub(super) fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.waiting.len(), inner.engines.iter().map(|view| view.admitted.len()).sum())
    }

    /// How many engines are ready, and how many there are.
    pub(super) fn engines(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.engines.iter().filter(|view| view.state == EngineState::Ready).count(), inner.engines.len())
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

    // Called by engine threads.

    pub(super) fn set_state(&self, engine: usize, state: EngineState) {
        let mut inner = self.lock();
        let view = &mut inner.engines[engine];
        view.is_warmed_up |= state == EngineState::Ready;
        view.failures += u32::from(view.is_warmed_up && matches!(state, EngineState::Rebuilding { .. }));
        view.state = state;
        inner.version += 1;
        let all = inner.state();
        match (&all, inner.down_since) {
            (EngineState::Ready, _) => inner.down_since = None,
            (_, None) => inner.down_since = Some(Instant::now()),
            (_, Some(_)) => {}
        }
        drop(inner);
        self.state.send_replace(all);
    }

    /// For how long no engine has been ready.
    pub(super) fn down_for(&self) -> Duration {
        self.lock().down_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn set_costs(&self, engine: usize, costs: CostModel, scale: WorkScale) {
        let mut inner = self.lock();
        let view = &mut inner.engines[engine];
        (view.costs, view.scale) = (costs, scale);
    }

    pub(super) fn update_costs(&self, engine: usize, update: impl FnOnce(&mut CostModel)) {
        update(&mut self.lock().engines[engine].costs);
    }

    /// Publishes what an engine holds.
    pub(super) fn publish(&self, engine: usize, admitted: &[ActiveJob]) {
        let mut inner = self.lock();
        let view = &mut inner.engines[engine];
        let is_same = view.admitted.iter().map(|job| job.id).eq(admitted.iter().map(|job| job.id));
        inner.version += u64::from(!is_same);
        let view = &mut inner.engines[engine];
        view.admitted.clear();
        view.admitted.extend_from_slice(admitted);
    }

    /// Takes what has changed, and fails pending jobs whose deadline has passed.
    pub(super) fn take_updates(&self, engine: usize) -> Updates {
        let mut inner = self.lock();
        let late = inner.take_late(Instant::now());
        let costs = inner.engines[engine].costs;
        let is_idle = |(other, view): (usize, &EngineView)| {
            other != engine && view.state == EngineState::Ready && view.admitted.is_empty()
        };
        let updates = Updates {
            candidates: inner.candidates(engine, self.epoch),
            ledger: inner.ledger.clone(),
            costs,
            cancels: std::mem::take(&mut inner.engines[engine].cancels),
            others_idle: inner.engines.iter().enumerate().any(is_idle),
            closed: inner.closed,
        };
        drop(inner);
        late.into_iter().for_each(Entry::end_late);
        updates
    }

    /// Takes a job if it is still pending, and publishes it as admitted, so that it can still be canceled.
    pub(super) fn take(&self, engine: usize, id: JobId) -> Option<Entry> {
        let mut inner = self.lock();
        let index = inner.waiting.iter().position(|entry| entry.id == id)?;
        let entry = inner.waiting.remove(index);
        let view = &mut inner.engines[engine];
        view.admitted.push(ActiveJob::new(&entry, view.scale));
        inner.version += 1;
        Some(entry)
    }

    /// What a job asks for, if it is still pending and needs adapters.
    pub(super) fn spec_with_adapters(&self, id: JobId) -> Option<GenerateSpec> {
        let inner = self.lock();
        let entry = inner.waiting.iter().find(|entry| entry.id == id)?;
        (!entry.spec.loras().is_empty()).then(|| entry.spec.clone())
    }

    /// Returns a job to the queue. It keeps its arrival time.
    pub(super) fn put_back(&self, entry: Entry) {
        entry.events.put_back();
        let mut inner = self.lock();
        inner.waiting.push(entry);
        inner.version += 1;
        drop(inner);
        self.wake.notify_all();
    }

    /// Charges engine time to the owners it was spent on, relative to all owners that have jobs.
    pub(super) fn note_time(&self, engine: usize, served: &[Share], took: Duration) {
        let mut inner = self.lock();
        let present = inner.waiting.iter().map(|entry| (entry.owner, entry.terms));
        let admitted = inner.engines.iter().flat_map(|view| &view.admitted).map(|job| (job.owner, job.terms));
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

    /// Sleeps for `delay`; `false` when the queue was closed during it.
    pub(super) fn sleep(&self, delay: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) =
            self.wake.wait_timeout_while(inner, delay, |inner| !inner.closed).unwrap_or_else(PoisonError::into_inner);
        !inner.closed
    }

    /// Fails pending jobs whose deadline has passed: for when no engine is there to do it.
    pub(super) fn end_late(&self) {
        let late = self.lock().take_late(Instant::now());
        late.into_iter().for_each(Entry::end_late);
    }

    /// Fails all pending jobs.
    pub(super) fn fail_waiting(&self) {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.waiting);
        inner.version += 1;
        drop(inner);
        for entry in waiting {
            entry.fail(JobFailure::ENGINE_UNAVAILABLE, "the model's engine could not be started in time");
        }
    }

    /// Notes that an engine's thread ends. With the last one, the remaining jobs end without an outcome.
    pub(super) fn abandon(&self, engine: usize) {
        let mut inner = self.lock();
        inner.engines[engine].admitted.clear();
        inner.version += 1;
        let is_last = inner.engines.iter().all(|view| view.state == EngineState::Gone);
        let waiting = if is_last || inner.closed { std::mem::take(&mut inner.waiting) } else { Vec::new() };
        inner.closed |= is_last;
        drop(inner);
        drop(waiting);
    }

    /// Updates the metrics of the queue's depth.
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
        let admitted = inner.engines.iter().map(|view| view.admitted.len()).sum();
        drop(inner);
        metrics::queue_depth(model, waiting, admitted);
    }
}

impl Inner {
    /// State of all engines together: ready as soon as one is. A lost device is everybody's: the process must end.
    fn state(&self) -> EngineState {
        let states = || self.engines.iter().map(|view| &view.state);
        if let Some(lost) = states().find(|state| matches!(state, EngineState::DeviceLost { .. })) {
            return lost.clone();
        }
        if states().any(|state| *state == EngineState::Ready) {
            return EngineState::Ready;
        }
        let rebuilding = states().find(|state| matches!(state, EngineState::Rebuilding { .. }));
        let loading = states().find(|state| **state == EngineState::Loading);
        loading.or(rebuilding).cloned().unwrap_or(EngineState::Gone)
    }

    fn take_late(&mut self, now: Instant) -> Vec<Entry> {
        let late: Vec<Entry> = self.waiting.extract_if(.., |entry| entry.is_late(now)).collect();
        self.version += late.len() as u64;
        late
    }

    /// All pending jobs, and those in this engine.
    fn candidates(&self, engine: usize, epoch: Instant) -> Vec<Candidate> {
        let view = &self.engines[engine];
        let now = epoch.elapsed().as_secs_f64();
        let candidate = |job: &ActiveJob, is_admitted: bool| Candidate {
            id: job.id,
            owner: job.owner,
            weight: job.terms.owner_priority.weight(),
            rank: job.urgency(epoch, &view.costs).rank(now),
            step_tokens: job.step_tokens,
            step_work: job.step_work,
            steps_left: job.steps_left,
            is_suspect: job.is_suspect,
            is_loading: false,
            is_admitted,
            is_encoding: is_admitted && job.is_encoding,
        };
        let admitted = view.admitted.iter().map(|job| candidate(job, true));
        let waiting = self.waiting.iter().map(|entry| candidate(&ActiveJob::new(entry, view.scale), false));
        admitted.chain(waiting).collect()
    }
}
