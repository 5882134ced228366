//! An engine's own thread: builds the engine, follows the planner, and survives the engine's failures.
//!
//! New jobs and cancellations are read between any two actions, so a new job joins the next step and a canceled image
//! is not in it.

mod decode;
mod draft;
mod encode;
mod faults;
mod loading;
mod spans;
mod warm_up;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cost::WorkScale;
use super::entry::{ActiveJob, Entry};
use super::event::{JobFailure, QueueEvent};
use super::guarded::GuardedEngine;
use super::ledger::Share;
use super::planner::{Action, NonStepWork, PlannerState, Reason, plan};
use super::shared::{SharedQueue, Updates};
use super::{CancelCause, EngineFactory, EngineState, QueueSettings};
use crate::domain::engine::{EngineError, Slot};
use crate::domain::ids::JobId;
use crate::telemetry::metrics;
use decode::patience;
use draft::DueDraft;
use faults::end_failed;
use loading::{LOOK_INTERVAL, LoadingJob};

/// How often the deadlines of pending jobs are checked while there is no engine.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The engine broke: why, and which jobs it was working on.
pub(super) struct Broken {
    cause: String,
    at: Vec<JobId>,
    /// Whether this process cannot use the device any more.
    is_device_lost: bool,
}

impl Broken {
    /// By an error that [`EngineError::breaks_engine`].
    fn at(error: EngineError, at: Vec<JobId>) -> Self {
        let is_device_lost = matches!(error, EngineError::DeviceLost(_));
        let cause = match error {
            EngineError::Fatal(cause) | EngineError::DeviceLost(cause) => cause,
            other => other.to_string(),
        };
        Self { cause, at, is_device_lost }
    }
}

impl From<EngineError> for Broken {
    fn from(error: EngineError) -> Self {
        let cause = error.to_string();
        Self { cause, ..Self::at(error, Vec::new()) }
    }
}

/// An image in the engine.
struct Running {
    entry: Entry,
    slot: Slot,
    /// Time spent on its decoding so far.
    decoding: Duration,
}

pub(super) struct Worker {
    shared: Arc<SharedQueue>,
    engine: usize,
    settings: QueueSettings,
    running: HashMap<JobId, Running>,
    /// The same jobs as in `running`, in order of admission.
    admitted: Vec<ActiveJob>,
    /// Pending jobs that wait for what this engine is loading for them.
    loading: Vec<LoadingJob>,
    /// The drafts to make, the oldest first: a few for each running image.
    due_drafts: VecDeque<DueDraft>,
    non_step_work: NonStepWork,
    admissions_blocked: bool,
    scale: WorkScale,
}

impl Worker {
    pub(super) fn new(shared: Arc<SharedQueue>, engine: usize, settings: QueueSettings) -> Self {
        Self {
            shared,
            engine,
            settings,
            running: HashMap::new(),
            admitted: Vec::new(),
            loading: Vec::new(),
            due_drafts: VecDeque::new(),
            non_step_work: NonStepWork::default(),
            admissions_blocked: false,
            scale: WorkScale { attention_balance_tokens: usize::MAX },
        }
    }

    /// Builds engines and serves with them until the queue is closed, or the device is lost to this process.
    pub(super) fn run(mut self, factory: &EngineFactory) {
        let model = self.settings.model.clone();
        let mut delay = self.settings.rebuild_delay;
        let mut builds_failed: u32 = 0;
        loop {
            let broken = match self.build(factory) {
                Ok(engine) => {
                    (builds_failed, delay) = (0, self.settings.rebuild_delay);
                    self.shared.set_state(self.engine, EngineState::Ready);
                    let Err(broken) = self.serve(engine) else { break };
                    broken
                }
                Err(broken) => {
                    builds_failed = builds_failed.saturating_add(1);
                    broken
                }
            };
            let Broken { cause, at, is_device_lost } = broken;
            if is_device_lost {
                tracing::error!(%model, engine = self.engine, cause, "the device is lost to this process, which must end");
                self.shared.set_state(self.engine, EngineState::DeviceLost { cause });
                // They wait for the process that follows, as after a crash.
                self.release_all(&at);
                break;
            }
            tracing::error!(%model, engine = self.engine, cause, builds_failed, "the engine failed and is rebuilt");
            self.shared.set_state(self.engine, EngineState::Rebuilding { cause, builds_failed });
            self.release_all(&at);
            metrics::engine_rebuilt(model.as_str());
            if !self.wait_out(delay) {
                break;
            }
            delay = delay.saturating_mul(2).min(self.settings.rebuild_delay_max);
        }
    }

    /// Waits before the next attempt; `false` when the queue was closed. Looks after pending jobs, which may have no
    /// other engine now.
    fn wait_out(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            self.shared.end_late();
            if self.shared.down_for() >= self.settings.outage_max {
                self.shared.fail_waiting();
            }
            let left = until.saturating_duration_since(Instant::now());
            if !self.shared.sleep(left.min(DEADLINE_CHECK_INTERVAL)) {
                return false;
            }
            if left <= DEADLINE_CHECK_INTERVAL {
                return true;
            }
        }
    }

    /// Builds an engine and warms it up: only then it is ready, and its costs are known.
    fn build(&mut self, factory: &EngineFactory) -> Result<GuardedEngine, Broken> {
        let started = Instant::now();
        let mut engine = GuardedEngine::build(factory, self.shared.watch(self.engine))?;
        self.scale = WorkScale { attention_balance_tokens: engine.attention_balance_tokens()? };
        let costs = warm_up::run(&mut engine, &self.settings.warm_up, self.scale)?;
        self.shared.set_costs(self.engine, costs, self.scale);
        tracing::info!(
            model = %self.settings.model,
            engine = self.engine,
            seconds = started.elapsed().as_secs_f64(),
            step_overhead_seconds = costs.step_seconds(0.0),
            seconds_per_kilotoken = costs.step_seconds(1000.0) - costs.step_seconds(0.0),
            packed_tokens = costs.packed_work(),
            "the engine is warmed up"
        );
        Ok(engine)
    }

    /// Serves until the queue is closed (`Ok`) or the engine breaks.
    fn serve(&mut self, mut engine: GuardedEngine) -> Result<(), Broken> {
        loop {
            let Some(mut updates) = self.catch_up(&mut engine)? else { return Ok(()) };
            self.load_further(&mut engine, &mut updates)?;
            let state = PlannerState {
                candidates: &updates.candidates,
                ledger: &updates.ledger,
                costs: &updates.costs,
                non_step_work: self.non_step_work,
                admissions_blocked: self.admissions_blocked,
                others_idle: updates.others_idle,
            };
            if self.draft_part(&mut engine, &state)? {
                continue;
            }
            let plan = plan(&state, &engine.limits()?);
            tracing::trace!(?plan, "planned");
            match plan.action {
                Action::Idle if self.loading.is_empty() => self.shared.wait_for_work(self.engine),
                Action::Idle => {
                    self.shared.sleep(LOOK_INTERVAL);
                }
                Action::Admit(id) => {
                    if self.is_loaded(&mut engine, id)? {
                        self.admit(&mut engine, id)?;
                    }
                }
                Action::Encode(id) => self.encode(&mut engine, id)?,
                Action::Step(ids) => self.step(&mut engine, ids, plan.reason)?,
                Action::Finish(id) => self.finish(&mut engine, id, patience(&state))?,
            }
        }
    }

    /// Releases canceled and late images, then takes the updates. `None`: the queue is closed.
    fn catch_up(&mut self, engine: &mut GuardedEngine) -> Result<Option<Updates>, Broken> {
        let now = Instant::now();
        let is_late = |job: &&ActiveJob| job.terms.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<JobId> = self.admitted.iter().filter(is_late).map(|job| job.id).collect();
        for running in late.into_iter().filter_map(|id| self.remove(id)).collect::<Vec<_>>() {
            running.entry.end_late();
            engine.release(running.slot)?;
        }
        loop {
            // Before taking updates: a removed job must not be planned again, and nothing else would remove it before a
            // sleep.
            self.shared.publish(self.engine, &self.admitted);
            let updates = self.shared.take_updates(self.engine);
            if updates.cancels.is_empty() {
                self.shared.count(self.settings.model.as_str());
                return Ok((!updates.closed).then_some(updates));
            }
            for (id, cause) in updates.cancels {
                self.cancel(engine, id, cause)?;
            }
        }
    }

    fn cancel(&mut self, engine: &mut GuardedEngine, id: JobId, cause: CancelCause) -> Result<(), Broken> {
        if let Some(running) = self.remove(id) {
            metrics::job_canceled(cause.as_str());
            running.entry.events.end(QueueEvent::Canceled);
            engine.release(running.slot)?;
        } else {
            // It was put back into the queue after the cancel request.
            self.shared.cancel(id, cause);
        }
        Ok(())
    }

    fn admit(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<(), Broken> {
        let tokens_max = engine.limits()?.step_tokens_max;
        let Some(entry) = self.shared.take(self.engine, id) else {
            return Ok(());
        };
        let job = ActiveJob::new(&entry, self.scale);
        if job.step_tokens > tokens_max {
            let reason = format!("it takes {} tokens per step, and this device holds {tokens_max}", job.step_tokens);
            entry.fail(JobFailure::OUT_OF_MEMORY, reason);
            return Ok(());
        }
        let started = Instant::now();
        let admitted = entry.span.in_scope(|| engine.admit(&entry.spec));
        let took = self.note_non_step_work(started, &job);
        metrics::admitted(self.settings.model.as_str(), entry.arrived.elapsed(), took);
        match admitted {
            Ok(slot) => {
                self.shared.update_costs(self.engine, |costs| costs.note_admission(took));
                entry.events.worked(took);
                entry.events.started();
                tracing::debug!(parent: &entry.span, engine = self.engine, "admitted");
                self.admitted.push(job);
                self.running.insert(id, Running { entry, slot, decoding: Duration::ZERO });
            }
            Err(EngineError::OutOfMemory(_)) if !self.running.is_empty() => {
                self.admissions_blocked = true;
                self.shared.put_back(entry);
            }
            Err(error) if error.breaks_engine() => {
                // The only job it was working on.
                self.requeue(entry, true);
                return Err(Broken::at(error, Vec::new()));
            }
            Err(error) => end_failed(entry, &error),
        }
        Ok(())
    }

    /// Charges the owner for engine time outside of steps.
    fn note_non_step_work(&mut self, started: Instant, job: &ActiveJob) -> Duration {
        let took = started.elapsed();
        self.non_step_work.note(took.as_secs_f64());
        let (owner, weight) = (job.owner, job.terms.owner_priority.weight());
        self.shared.note_time(self.engine, &[Share { owner, weight, part: 1.0 }], took);
        took
    }

    /// Runs one step for `ids`. If the engine rejects the batch, retries with the first half, down to one image; the
    /// rest are next.
    fn step(&mut self, engine: &mut GuardedEngine, mut ids: Vec<JobId>, reason: Reason) -> Result<(), Broken> {
        metrics::step_planned(self.settings.model.as_str(), reason.as_str(), ids.len());
        loop {
            let slots: Vec<Slot> = ids.iter().map(|id| self.running[id].slot).collect();
            let started = Instant::now();
            let span = self.step_span(&ids, reason);
            match span.in_scope(|| engine.step(&slots)) {
                Ok(()) => {
                    let took = started.elapsed();
                    // First: a watcher that is told of the step then finds its preview.
                    let outcome = self.update_previews(engine, &ids);
                    self.note_step(&ids, took);
                    self.note_due_drafts(&ids);
                    return outcome;
                }
                Err(error) if error.breaks_engine() => return Err(Broken::at(error, ids)),
                Err(error) if ids.len() > 1 => {
                    tracing::warn!(parent: &span, %error, images = ids.len(), "the step is retried with half its images");
                    ids.truncate(ids.len() / 2);
                }
                Err(EngineError::OutOfMemory(_)) if self.running.len() > 1 => return self.make_room(engine, ids[0]),
                Err(error) => {
                    if let Some(running) = self.remove(ids[0]) {
                        end_failed(running.entry, &error);
                        engine.release(running.slot)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Makes the requested previews. A failed one is no reason to stop.
    fn update_previews(&self, engine: &mut GuardedEngine, ids: &[JobId]) -> Result<(), Broken> {
        for Running { entry, slot, .. } in ids.iter().filter_map(|id| self.running.get(id)) {
            if !entry.events.previews.take_request() {
                continue;
            }
            let _entered = entry.span.enter();
            match engine.preview(*slot) {
                Ok(None) => {}
                Ok(Some(preview)) => entry.events.previews.show(preview),
                Err(error) if error.breaks_engine() => return Err(Broken::at(error, vec![entry.id])),
                Err(error) => tracing::debug!(%error, "no preview"),
            }
        }
        Ok(())
    }

    fn note_step(&mut self, ids: &[JobId], took: Duration) {
        let (mut tokens, mut work) = (0, 0.0);
        let mut served = Vec::with_capacity(ids.len());
        for job in self.admitted.iter_mut().filter(|job| ids.contains(&job.id)) {
            job.steps_left -= 1;
            tokens += job.step_tokens;
            work += job.step_work;
            let weight = job.terms.owner_priority.weight();
            served.push(Share { owner: job.owner, weight, part: job.step_work });
            let entry = &self.running[&job.id].entry;
            entry.events.step(entry.spec.steps() - job.steps_left, entry.spec.steps());
        }
        for job in self.admitted.iter().filter(|job| ids.contains(&job.id)) {
            self.running[&job.id].entry.events.worked(took.mul_f64(job.step_work / work.max(1.0)));
        }
        self.non_step_work.note_step(took.as_secs_f64());
        self.shared.update_costs(self.engine, |costs| costs.note_step(work, took));
        self.shared.note_time(self.engine, &served, took);
        metrics::step_done(self.settings.model.as_str(), tokens, took);
    }

    /// Removes an image, which lets others in.
    fn remove(&mut self, id: JobId) -> Option<Running> {
        self.admitted.retain(|job| job.id != id);
        self.admissions_blocked = false;
        self.running.remove(&id)
    }
}

impl Drop for Worker {
    /// Also when this thread panics, which is a bug: no job may wait for a dead thread.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.set_state(self.engine, EngineState::Gone);
        }
        self.shared.abandon(self.engine);
    }
}
