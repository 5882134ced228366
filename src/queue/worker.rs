//! The engine's own thread: builds the engine, does what the planner says, and survives what the engine does.
//!
//! Newcomers and cancellations are looked at between any two actions, so a late comer joins the next step and a
//! cancelled picture is not in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{JobFailure, QueueEvent};
use super::guarded::GuardedEngine;
use super::line::{Entry, Line};
use super::planner::{Action, Admitted, PlannerState, plan};
use super::{EngineFactory, EngineState, QueueSettings};
use crate::domain::engine::{EngineError, Slot};
use crate::domain::ids::JobId;
use crate::telemetry::metrics;

/// How often one job is begun anew to make room for others before it fails.
const RESTARTS_MAX: u32 = 3;

/// The engine is of no use any more, and why.
struct Broken(String);

impl From<EngineError> for Broken {
    fn from(error: EngineError) -> Self {
        Self(error.to_string())
    }
}

struct Drawing {
    entry: Entry,
    slot: Slot,
}

pub(super) struct Worker {
    line: Arc<Line>,
    settings: QueueSettings,
    drawings: HashMap<JobId, Drawing>,
    state: PlannerState,
    turn: u64,
}

impl Worker {
    pub(super) fn new(line: Arc<Line>, settings: QueueSettings) -> Self {
        Self { line, settings, drawings: HashMap::new(), state: PlannerState::default(), turn: 0 }
    }

    /// Builds engines and serves with them until the queue is closed.
    pub(super) fn run(mut self, factory: &EngineFactory) {
        let model = self.settings.model.clone();
        let mut delay = self.settings.rebuild_delay;
        let mut builds_failed: u32 = 0;
        let mut down_since = Instant::now();
        loop {
            let broken = match self.build(factory) {
                Ok(engine) => {
                    (builds_failed, delay) = (0, self.settings.rebuild_delay);
                    self.line.set_state(EngineState::Ready);
                    let Err(broken) = self.serve(engine) else { break };
                    down_since = Instant::now();
                    broken
                }
                Err(broken) => {
                    builds_failed = builds_failed.saturating_add(1);
                    broken
                }
            };
            let Broken(cause) = broken;
            tracing::error!(%model, cause, builds_failed, "the engine failed and is built again");
            self.fail_all();
            if down_since.elapsed() >= self.settings.outage_max {
                self.line.fail_waiting();
            }
            self.line.set_state(EngineState::Rebuilding { cause, builds_failed });
            metrics::engine_rebuilt(model.as_str());
            if !self.line.sleep(delay) {
                break;
            }
            delay = delay.saturating_mul(2).min(self.settings.rebuild_delay_max);
        }
    }

    /// Builds an engine and has it draw: only an engine that has drawn is ready.
    fn build(&self, factory: &EngineFactory) -> Result<GuardedEngine, Broken> {
        let started = Instant::now();
        let mut engine = GuardedEngine::build(factory)?;
        let warm_up = &self.settings.warm_up;
        let slot = engine.admit(warm_up)?;
        for _ in 0..warm_up.steps() {
            let step_started = Instant::now();
            engine.step(&[slot])?;
            self.line.note_cost(warm_up.step_tokens(), step_started.elapsed());
        }
        engine.finish(slot)?;
        tracing::info!(model = %self.settings.model, seconds = started.elapsed().as_secs_f64(), "the engine has drawn");
        Ok(engine)
    }

    /// Serves until the queue is closed (`Ok`) or the engine breaks.
    fn serve(&mut self, mut engine: GuardedEngine) -> Result<(), Broken> {
        loop {
            if self.catch_up(&mut engine)? {
                return Ok(());
            }
            let plan = plan(&self.state, &engine.limits()?);
            tracing::trace!(?plan, "planned");
            self.turn += 1;
            match plan.action {
                Action::Idle => self.line.wait_for_work(),
                Action::Admit(id) => self.admit(&mut engine, id)?,
                Action::Step(ids) => self.step(&mut engine, ids)?,
                Action::Finish(id) => self.finish(&mut engine, id)?,
            }
        }
    }

    /// Takes the news and lets go of cancelled pictures. `true`: the queue is closed.
    fn catch_up(&mut self, engine: &mut GuardedEngine) -> Result<bool, Broken> {
        let news = self.line.take_news();
        self.state.next_waiting = news.next_waiting;
        for id in news.cancels {
            if let Some(drawing) = self.leave(id) {
                drawing.entry.events.end(QueueEvent::Canceled);
                engine.release(drawing.slot)?;
            } else {
                // Put back into the line between the wish and now.
                self.line.cancel(id);
            }
        }
        // Only now: before a sleep, nobody would come by to strike out those who have just left.
        self.show(news.waiting);
        Ok(news.closed)
    }

    fn admit(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<(), Broken> {
        let tokens_max = engine.limits()?.step_tokens_max;
        let Some(entry) = self.line.take_first(id) else {
            return Ok(());
        };
        self.state.admissions_since_step += 1;
        let (steps, step_tokens) = (entry.spec.steps(), entry.spec.step_tokens());
        if step_tokens > tokens_max {
            let reason = format!("it takes {step_tokens} tokens per step, and this device holds {tokens_max}");
            entry.fail(JobFailure::OUT_OF_MEMORY, reason);
            return Ok(());
        }
        let started = Instant::now();
        match engine.admit(&entry.spec) {
            Ok(slot) => {
                entry.events.worked(started.elapsed());
                entry.events.started();
                self.state.admitted.push(Admitted { id, step: 0, steps, step_tokens, moved_in_turn: self.turn });
                self.drawings.insert(id, Drawing { entry, slot });
            }
            Err(EngineError::OutOfMemory(_)) if !self.drawings.is_empty() => {
                self.state.admissions_blocked = true;
                self.line.put_back(entry);
            }
            Err(error) => return end_failed(entry, error),
        }
        Ok(())
    }

    /// One step of `ids`. Where the engine refuses the set, the first half of it, down to one picture; the others then
    /// have waited longest and are first in the next step.
    fn step(&mut self, engine: &mut GuardedEngine, mut ids: Vec<JobId>) -> Result<(), Broken> {
        self.state.admissions_since_step = 0;
        loop {
            let slots: Vec<Slot> = ids.iter().map(|id| self.drawings[id].slot).collect();
            let started = Instant::now();
            match engine.step(&slots) {
                Ok(()) => {
                    self.note_step(&ids, started.elapsed());
                    return self.show_previews(engine, &ids);
                }
                Err(error @ (EngineError::OutOfMemory(_) | EngineError::Request(_))) if ids.len() > 1 => {
                    tracing::warn!(%error, pictures = ids.len(), "the step is tried again with half its pictures");
                    ids.truncate(ids.len() / 2);
                }
                Err(EngineError::OutOfMemory(_)) if self.drawings.len() > 1 => return self.make_room(engine, ids[0]),
                Err(EngineError::Fatal(reason)) => return Err(Broken(reason)),
                Err(error) => {
                    if let Some(drawing) = self.leave(ids[0]) {
                        end_failed(drawing.entry, error)?;
                        engine.release(drawing.slot)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Rough pictures for those who look. One that cannot be made is no reason to stop.
    fn show_previews(&self, engine: &mut GuardedEngine, ids: &[JobId]) -> Result<(), Broken> {
        for Drawing { entry, slot } in ids.iter().filter_map(|id| self.drawings.get(id)) {
            if !entry.events.previews.take_wish() {
                continue;
            }
            match engine.preview(*slot) {
                Ok(None) => {}
                Ok(Some(preview)) => entry.events.previews.show(preview),
                Err(EngineError::Fatal(reason)) => return Err(Broken(reason)),
                Err(error) => tracing::debug!(%error, "no preview"),
            }
        }
        Ok(())
    }

    fn note_step(&mut self, ids: &[JobId], took: Duration) {
        let mut tokens = 0;
        for picture in self.state.admitted.iter_mut().filter(|picture| ids.contains(&picture.id)) {
            picture.step += 1;
            picture.moved_in_turn = self.turn;
            tokens += picture.step_tokens;
            self.drawings[&picture.id].entry.events.step(picture.step, picture.steps);
        }
        for picture in self.state.admitted.iter().filter(|picture| ids.contains(&picture.id)) {
            let part = picture.step_tokens as f64 / tokens.max(1) as f64;
            self.drawings[&picture.id].entry.events.worked(took.mul_f64(part));
        }
        self.line.note_cost(tokens, took);
        metrics::step_done(self.settings.model.as_str(), tokens, took);
    }

    /// Puts the youngest picture but `keep` back into the line, to be drawn anew when somebody has left.
    fn make_room(&mut self, engine: &mut GuardedEngine, keep: JobId) -> Result<(), Broken> {
        let youngest = self.state.admitted.iter().rev().find(|picture| picture.id != keep).map(|picture| picture.id);
        if let Some(drawing) = youngest.and_then(|id| self.leave(id)) {
            self.begin_anew(drawing.entry);
            engine.release(drawing.slot)?;
        }
        self.state.admissions_blocked = true;
        Ok(())
    }

    fn begin_anew(&self, mut entry: Entry) {
        if entry.restarts >= RESTARTS_MAX {
            entry.fail(JobFailure::OUT_OF_MEMORY, "the device's memory did not suffice");
            return;
        }
        entry.restarts += 1;
        self.line.put_back(entry);
    }

    fn finish(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<(), Broken> {
        let Some(Drawing { entry, slot }) = self.leave(id) else {
            return Ok(());
        };
        let started = Instant::now();
        let drawn = engine.finish(slot);
        entry.events.worked(started.elapsed());
        match drawn {
            Ok(picture) => entry.events.end(QueueEvent::Finished(picture)),
            // The engine has let go of the picture: it can only be drawn anew, when there is more room.
            Err(EngineError::OutOfMemory(_)) if !self.drawings.is_empty() => {
                self.begin_anew(entry);
                self.state.admissions_blocked = true;
            }
            Err(error) => return end_failed(entry, error),
        }
        Ok(())
    }

    /// Forgets a picture. Somebody has left, so others may come.
    fn leave(&mut self, id: JobId) -> Option<Drawing> {
        self.state.admitted.retain(|picture| picture.id != id);
        self.state.admissions_blocked = false;
        self.drawings.remove(&id)
    }

    fn fail_all(&mut self) {
        self.state = PlannerState::default();
        for (_, drawing) in self.drawings.drain() {
            drawing.entry.fail(JobFailure::ENGINE_FAILED, ENGINE_FAILED_REASON);
        }
        self.show(self.line.take_news().waiting);
    }

    fn show(&self, waiting: usize) {
        self.line.show(&self.state.admitted);
        metrics::queue_depth(self.settings.model.as_str(), waiting, self.drawings.len());
    }
}

impl Drop for Worker {
    /// Also when this thread panics, which is a mistake of ours: nobody shall wait for a thread that is gone.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.line.set_state(EngineState::Gone);
        }
        self.line.abandon();
    }
}

const ENGINE_FAILED_REASON: &str = "the engine failed while it drew this picture";

/// Tells one job that it failed. `Err` when the engine is broken for the others, too.
fn end_failed(entry: Entry, error: EngineError) -> Result<(), Broken> {
    match error {
        EngineError::Request(reason) => entry.fail(JobFailure::REFUSED_BY_ENGINE, reason),
        EngineError::OutOfMemory(_) => {
            entry.fail(JobFailure::OUT_OF_MEMORY, "the device's memory does not suffice for this picture");
        }
        EngineError::Fatal(reason) => {
            entry.fail(JobFailure::ENGINE_FAILED, ENGINE_FAILED_REASON);
            return Err(Broken(reason));
        }
    }
    Ok(())
}
