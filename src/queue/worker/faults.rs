//! What happens to images when the device is out of memory, or the engine breaks.

use super::{Broken, Running, Worker};
use crate::domain::engine::EngineError;
use crate::domain::ids::JobId;
use crate::queue::entry::Entry;
use crate::queue::event::JobFailure;
use crate::queue::guarded::GuardedEngine;
use crate::queue::planner::NonStepWork;

/// How often one job is restarted to free memory for others before it fails.
const RESTARTS_MAX: u32 = 3;

/// How often an engine may fail while working on one job before that fails: a job must not break one engine after
/// another.
const ENGINE_FAILURES_MAX: u32 = 2;

impl Worker {
    /// Returns the youngest image but `keep` to the queue, to be restarted when another one has left.
    pub(super) fn make_room(&mut self, engine: &mut GuardedEngine, keep: JobId) -> Result<(), Broken> {
        let youngest = self.admitted.iter().rev().find(|job| job.id != keep).map(|job| job.id);
        if let Some(running) = youngest.and_then(|id| self.remove(id)) {
            self.restart(running.entry);
            engine.release(running.slot)?;
        }
        self.admissions_blocked = true;
        Ok(())
    }

    pub(super) fn restart(&self, mut entry: Entry) {
        if entry.restarts >= RESTARTS_MAX {
            entry.fail(JobFailure::OUT_OF_MEMORY, "the device ran out of memory");
            return;
        }
        entry.restarts += 1;
        tracing::debug!(parent: &entry.span, restarts = entry.restarts, "restarted to free memory for others");
        self.shared.put_back(entry);
    }

    /// Requeues all images of a broken engine. Those it was working `at` are suspects.
    pub(super) fn release_all(&mut self, at: &[JobId]) {
        for job in std::mem::take(&mut self.admitted) {
            if let Some(Running { entry, .. }) = self.running.remove(&job.id) {
                let is_suspect = at.contains(&entry.id);
                self.requeue(entry, is_suspect);
            }
        }
        self.non_step_work = NonStepWork::default();
        self.admissions_blocked = false;
        self.shared.publish(self.engine, &self.admitted);
        // Not when this engine is there again: until then those would wait, or another engine would generate them.
        self.shared.cancel_requeued(self.engine);
        self.shared.count(self.settings.model.as_str());
    }

    pub(super) fn requeue(&self, mut entry: Entry, is_suspect: bool) {
        entry.engine_failures += u32::from(is_suspect);
        if entry.engine_failures >= ENGINE_FAILURES_MAX {
            entry.fail(JobFailure::ENGINE_FAILED, "the engine failed each time it generated this image");
        } else {
            tracing::debug!(parent: &entry.span, is_suspect, "restarted, because the engine failed");
            self.shared.put_back(entry);
        }
    }
}

/// Fails one job with an engine's error.
pub(super) fn end_failed(entry: Entry, error: &EngineError) {
    let code = match error {
        EngineError::Request(_) => JobFailure::REFUSED_BY_ENGINE,
        EngineError::NotFinite => JobFailure::NOT_FINITE,
        EngineError::OutOfMemory(_) => {
            return entry.fail(JobFailure::OUT_OF_MEMORY, "the device has too little memory for this image");
        }
        EngineError::Fatal(_) | EngineError::DeviceLost(_) => {
            return entry.fail(JobFailure::ENGINE_FAILED, "the engine failed");
        }
    };
    entry.fail(code, error.to_string());
}
