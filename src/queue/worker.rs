//! An engine's own thread: builds the engine, does what the planner says, and survives what the engine does.
//!
//! Newcomers and cancellations are looked at between any two actions, so a late comer joins the next step and a
//! cancelled image is not in it.

mod decode;
mod faults;
mod spans;
mod warm_up;

use std::collections::HashMap;
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
use faults::end_failed;

/// How often the deadlines of those in line are looked at while there is no engine.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The engine is of no use any more: why, and which jobs it was at.
pub(super) struct Broken {
    cause: String,
    at: Vec<JobId>,
}

impl From<EngineError> for Broken {
    fn from(error: EngineError) -> Self {
        Self { cause: error.to_string(), at: Vec::new() }
    }
}

struct Drawing {
    entry: Entry,
    slot: Slot,
    /// How long it has been decoded so far.
    decoding: Duration,
}

pub(super) struct Worker {
    shared: Arc<SharedQueue>,
    engine: usize,
    settings: QueueSettings,
    drawings: HashMap<JobId, Drawing>,
    /// As in `drawings`, in order of admission.
    admitted: Vec<ActiveJob>,
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
            drawings: HashMap::new(),
            admitted: Vec::new(),
            non_step_work: NonStepWork::default(),
            admissions_blocked: false,
            scale: WorkScale { attention_balance_tokens: usize::MAX },
        }
    }

    /// Builds engines and serves with them until the queue is closed.
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
            let Broken { cause, at } = broken;
            tracing::error!(%model, engine = self.engine, cause, builds_failed, "the engine failed and is built again");
            self.shared.set_state(self.engine, EngineState::Rebuilding { cause, builds_failed });
            self.let_all_go(&at);
            metrics::engine_rebuilt(model.as_str());
            if !self.wait_out(delay) {
                break;
            }
            delay = delay.saturating_mul(2).min(self.settings.rebuild_delay_max);
        }
    }

    /// Waits before the next attempt; `false` when the queue was closed. Those in line have no engine to look after them
    /// now, unless there is another one.
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

    /// Builds an engine and has it draw: only an engine that has drawn is ready, and what it took is known by then.
    fn build(&mut self, factory: &EngineFactory) -> Result<GuardedEngine, Broken> {
        let started = Instant::now();
        let mut engine = GuardedEngine::build(factory, self.shared.watch(self.engine))?;
        self.scale = WorkScale { attention_balance_tokens: engine.attention_balance_tokens()? };
        let costs = warm_up::draw(&mut engine, &self.settings.warm_up, self.scale)?;
        self.shared.set_costs(self.engine, costs, self.scale);
        tracing::info!(
            model = %self.settings.model,
            engine = self.engine,
            seconds = started.elapsed().as_secs_f64(),
            step_overhead_seconds = costs.step_seconds(0.0),
            seconds_per_kilotoken = costs.step_seconds(1000.0) - costs.step_seconds(0.0),
            packed_tokens = costs.packed_work(),
            "the engine has drawn"
        );
        Ok(engine)
    }

    /// Serves until the queue is closed (`Ok`) or the engine breaks.
    fn serve(&mut self, mut engine: GuardedEngine) -> Result<(), Broken> {
        loop {
            let Some(news) = self.catch_up(&mut engine)? else { return Ok(()) };
            let state = PlannerState {
                candidates: &news.candidates,
                ledger: &news.ledger,
                costs: &news.costs,
                non_step_work: self.non_step_work,
                admissions_blocked: self.admissions_blocked,
                others_idle: news.others_idle,
            };
            let plan = plan(&state, &engine.limits()?);
            tracing::trace!(?plan, "planned");
            match plan.action {
                Action::Idle => self.shared.wait_for_work(self.engine),
                Action::Admit(id) => self.admit(&mut engine, id)?,
                Action::Step(ids) => self.step(&mut engine, ids, plan.reason)?,
                Action::Finish(id) => self.finish(&mut engine, id, patience(&state))?,
            }
        }
    }

    /// Lets go of images that are cancelled or late, then takes the news. `None`: the queue is closed.
    fn catch_up(&mut self, engine: &mut GuardedEngine) -> Result<Option<Updates>, Broken> {
        let now = Instant::now();
        let is_late = |shown: &&ActiveJob| shown.terms.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<JobId> = self.admitted.iter().filter(is_late).map(|shown| shown.id).collect();
        for drawing in late.into_iter().filter_map(|id| self.leave(id)).collect::<Vec<_>>() {
            drawing.entry.end_late();
            engine.release(drawing.slot)?;
        }
        loop {
            // Before the news: who has left must not be planned with, and before a sleep nobody else would come by to
            // strike them out.
            self.shared.show(self.engine, &self.admitted);
            let news = self.shared.take_news(self.engine);
            if news.cancels.is_empty() {
                self.shared.count(self.settings.model.as_str());
                return Ok((!news.closed).then_some(news));
            }
            for (id, cause) in news.cancels {
                self.cancel(engine, id, cause)?;
            }
        }
    }

    fn cancel(&mut self, engine: &mut GuardedEngine, id: JobId, cause: CancelCause) -> Result<(), Broken> {
        if let Some(drawing) = self.leave(id) {
            metrics::job_canceled(cause.as_str());
            drawing.entry.events.end(QueueEvent::Canceled);
            engine.release(drawing.slot)?;
        } else {
            // Put back into the line between the wish and now.
            self.shared.cancel(id, cause);
        }
        Ok(())
    }

    fn admit(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<(), Broken> {
        let tokens_max = engine.limits()?.step_tokens_max;
        let Some(entry) = self.shared.take(self.engine, id) else {
            return Ok(());
        };
        let shown = ActiveJob::new(&entry, self.scale);
        if shown.step_tokens > tokens_max {
            let reason = format!("it takes {} tokens per step, and this device holds {tokens_max}", shown.step_tokens);
            entry.fail(JobFailure::OUT_OF_MEMORY, reason);
            return Ok(());
        }
        let started = Instant::now();
        let admitted = entry.span.in_scope(|| engine.admit(&entry.spec));
        let took = self.note_aside(started, &shown);
        metrics::admitted(self.settings.model.as_str(), entry.arrived.elapsed(), took);
        match admitted {
            Ok(slot) => {
                self.shared.update_costs(self.engine, |costs| costs.note_admission(took));
                entry.events.worked(took);
                entry.events.started();
                tracing::debug!(parent: &entry.span, engine = self.engine, "admitted");
                self.admitted.push(shown);
                self.drawings.insert(id, Drawing { entry, slot, decoding: Duration::ZERO });
            }
            Err(EngineError::OutOfMemory(_)) if !self.drawings.is_empty() => {
                self.admissions_blocked = true;
                self.shared.put_back(entry);
            }
            Err(EngineError::Fatal(cause)) => {
                // The only one it was at.
                self.begin_again_elsewhere(entry, true);
                return Err(Broken { cause, at: Vec::new() });
            }
            Err(error) => end_failed(entry, &error),
        }
        Ok(())
    }

    /// What is no step takes time of the engine as well, so it counts for the owner like one.
    fn note_aside(&mut self, started: Instant, shown: &ActiveJob) -> Duration {
        let took = started.elapsed();
        self.non_step_work.note(took.as_secs_f64());
        let (owner, weight) = (shown.owner, shown.terms.owner_priority.weight());
        self.shared.note_time(self.engine, &[Share { owner, weight, part: 1.0 }], took);
        took
    }

    /// One step of `ids`. Where the engine refuses the set, the first half of it, down to one image; the others are
    /// next.
    fn step(&mut self, engine: &mut GuardedEngine, mut ids: Vec<JobId>, reason: Reason) -> Result<(), Broken> {
        metrics::step_planned(self.settings.model.as_str(), reason.as_str(), ids.len());
        loop {
            let slots: Vec<Slot> = ids.iter().map(|id| self.drawings[id].slot).collect();
            let started = Instant::now();
            let span = self.step_span(&ids, reason);
            match span.in_scope(|| engine.step(&slots)) {
                Ok(()) => {
                    let took = started.elapsed();
                    // First: who hears of the step then finds its preview.
                    let shown = self.show_previews(engine, &ids);
                    self.note_step(&ids, took);
                    return shown;
                }
                Err(EngineError::Fatal(cause)) => return Err(Broken { cause, at: ids }),
                Err(error) if ids.len() > 1 => {
                    tracing::warn!(parent: &span, %error, images = ids.len(), "the step is tried again with half its images");
                    ids.truncate(ids.len() / 2);
                }
                Err(EngineError::OutOfMemory(_)) if self.drawings.len() > 1 => return self.make_room(engine, ids[0]),
                Err(error) => {
                    if let Some(drawing) = self.leave(ids[0]) {
                        end_failed(drawing.entry, &error);
                        engine.release(drawing.slot)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Rough images for those who look. One that cannot be made is no reason to stop.
    fn show_previews(&self, engine: &mut GuardedEngine, ids: &[JobId]) -> Result<(), Broken> {
        for Drawing { entry, slot, .. } in ids.iter().filter_map(|id| self.drawings.get(id)) {
            if !entry.events.previews.take_wish() {
                continue;
            }
            let _entered = entry.span.enter();
            match engine.preview(*slot) {
                Ok(None) => {}
                Ok(Some(preview)) => entry.events.previews.show(preview),
                Err(EngineError::Fatal(cause)) => return Err(Broken { cause, at: vec![entry.id] }),
                Err(error) => tracing::debug!(%error, "no preview"),
            }
        }
        Ok(())
    }

    fn note_step(&mut self, ids: &[JobId], took: Duration) {
        let (mut tokens, mut work) = (0, 0.0);
        let mut served = Vec::with_capacity(ids.len());
        for shown in self.admitted.iter_mut().filter(|shown| ids.contains(&shown.id)) {
            shown.steps_left -= 1;
            tokens += shown.step_tokens;
            work += shown.step_work;
            let weight = shown.terms.owner_priority.weight();
            served.push(Share { owner: shown.owner, weight, part: shown.step_work });
            let entry = &self.drawings[&shown.id].entry;
            entry.events.step(entry.spec.steps() - shown.steps_left, entry.spec.steps());
        }
        for shown in self.admitted.iter().filter(|shown| ids.contains(&shown.id)) {
            self.drawings[&shown.id].entry.events.worked(took.mul_f64(shown.step_work / work.max(1.0)));
        }
        self.non_step_work.note_step(took.as_secs_f64());
        self.shared.update_costs(self.engine, |costs| costs.note_step(work, took));
        self.shared.note_time(self.engine, &served, took);
        metrics::step_done(self.settings.model.as_str(), tokens, took);
    }

    /// Forgets an image. Somebody has left, so others may come.
    fn leave(&mut self, id: JobId) -> Option<Drawing> {
        self.admitted.retain(|shown| shown.id != id);
        self.admissions_blocked = false;
        self.drawings.remove(&id)
    }
}

impl Drop for Worker {
    /// Also when this thread panics, which is a mistake of ours: nobody shall wait for a thread that is gone.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.set_state(self.engine, EngineState::Gone);
        }
        self.shared.abandon(self.engine);
    }
}
