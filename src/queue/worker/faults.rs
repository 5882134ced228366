//! What becomes of an image when the device is out of memory, or the engine breaks.

use super::{Broken, Drawing, Worker};
use crate::domain::engine::EngineError;
use crate::domain::ids::JobId;
use crate::queue::entry::Entry;
use crate::queue::event::JobFailure;
use crate::queue::guarded::GuardedEngine;
use crate::queue::planner::NonStepWork;

/// How often one job is begun anew to make room for others before it fails.
const RESTARTS_MAX: u32 = 3;

/// How often an engine may fail while it is at one job before that fails: a job that breaks engines must not break one
/// after the other.
const ENGINE_FAILURES_MAX: u32 = 2;

impl Worker {
    /// Puts the youngest image but `keep` back into the line, to be drawn anew when somebody has left.
    pub(super) fn make_room(&mut self, engine: &mut GuardedEngine, keep: JobId) -> Result<(), Broken> {
        let youngest = self.admitted.iter().rev().find(|shown| shown.id != keep).map(|shown| shown.id);
        if let Some(drawing) = youngest.and_then(|id| self.leave(id)) {
            self.begin_anew(drawing.entry);
            engine.release(drawing.slot)?;
        }
        self.admissions_blocked = true;
        Ok(())
    }

    pub(super) fn begin_anew(&self, mut entry: Entry) {
        if entry.restarts >= RESTARTS_MAX {
            entry.fail(JobFailure::OUT_OF_MEMORY, "the device's memory did not suffice");
            return;
        }
        entry.restarts += 1;
        tracing::debug!(parent: &entry.span, restarts = entry.restarts, "begun anew, to make room for others");
        self.shared.put_back(entry);
    }

    /// The engine is broken: its images are drawn anew, by it or by another one. Those it was `at` are suspects.
    pub(super) fn let_all_go(&mut self, at: &[JobId]) {
        for shown in std::mem::take(&mut self.admitted) {
            if let Some(Drawing { entry, .. }) = self.drawings.remove(&shown.id) {
                let is_suspect = at.contains(&entry.id);
                self.begin_again_elsewhere(entry, is_suspect);
            }
        }
        self.non_step_work = NonStepWork::default();
        self.admissions_blocked = false;
        self.shared.show(self.engine, &self.admitted);
        self.shared.count(self.settings.model.as_str());
    }

    pub(super) fn begin_again_elsewhere(&self, mut entry: Entry, is_suspect: bool) {
        entry.engine_failures += u32::from(is_suspect);
        if entry.engine_failures >= ENGINE_FAILURES_MAX {
            entry.fail(JobFailure::ENGINE_FAILED, "the engine failed each time it drew this image");
        } else {
            tracing::debug!(parent: &entry.span, is_suspect, "begun anew, because the engine failed");
            self.shared.put_back(entry);
        }
    }
}

/// Tells one job that it failed.
pub(super) fn end_failed(entry: Entry, error: &EngineError) {
    let code = match error {
        EngineError::Request(_) => JobFailure::REFUSED_BY_ENGINE,
        EngineError::NotFinite => JobFailure::NOT_FINITE,
        EngineError::OutOfMemory(_) => {
            return entry.fail(JobFailure::OUT_OF_MEMORY, "the device's memory does not suffice for this image");
        }
        EngineError::Fatal(_) => return entry.fail(JobFailure::ENGINE_FAILED, "the engine failed"),
    };
    entry.fail(code, error.to_string());
}
