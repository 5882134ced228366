//! Drafts of running images, for clients that watch them form: decoded in parts, where the other images can wait for it.

use std::time::Instant;

use super::{Broken, Running, Worker};
use crate::domain::engine::{Draft, EngineError, Slot};
use crate::domain::ids::JobId;
use crate::queue::guarded::GuardedEngine;
use crate::queue::planner::PlannerState;

/// A draft that is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct DueDraft {
    id: JobId,
    index: u32,
}

/// Whether the others can wait for a part of a draft: before their next step no longer than that takes, together with the other
/// work outside of steps, and not while another image is being encoded or decoded.
fn has_time(state: &PlannerState<'_>) -> bool {
    let mut admitted = state.candidates.iter().filter(|candidate| candidate.is_admitted);
    let is_coding = admitted.any(|candidate| candidate.is_encoding || candidate.steps_left == 0);
    let is_alone = state.candidates.len() == 1;
    let step_seconds = state.costs.step_seconds(state.costs.packed_work());
    !is_coding && (is_alone || state.non_step_work.seconds < step_seconds)
}

impl Worker {
    /// Notes which of the images that have stepped are to be shown as they would end now.
    pub(super) fn note_due_drafts(&mut self, ids: &[JobId]) {
        for job in self.admitted.iter().filter(|job| ids.contains(&job.id)) {
            let Some(Running { entry, .. }) = self.running.get(&job.id) else { continue };
            let steps = entry.spec.steps();
            if let Some(index) = entry.drafts.take_due(steps - job.steps_left, steps) {
                self.due_drafts.push_back(DueDraft { id: job.id, index });
            }
        }
    }

    /// Makes a part of the next draft, if there is one and the others can wait for it. `false`: it did nothing.
    pub(super) fn draft_part(&mut self, engine: &mut GuardedEngine, state: &PlannerState<'_>) -> Result<bool, Broken> {
        // Once all steps are done, the image itself is about to come.
        let admitted = &self.admitted;
        self.due_drafts.retain(|draft| admitted.iter().any(|job| job.id == draft.id && job.steps_left > 0));
        let Some(DueDraft { id, index }) = self.due_drafts.front().copied().filter(|_| has_time(state)) else {
            return Ok(false);
        };
        let (Some(Running { entry, slot, .. }), Some(job)) =
            (self.running.get(&id), self.admitted.iter().find(|job| job.id == id).copied())
        else {
            return Ok(false);
        };
        let (started, slot, drafts) = (Instant::now(), *slot, entry.drafts.clone());
        let part = entry.span.in_scope(|| next_part(engine, slot));
        let took = self.note_non_step_work(started, &job);
        if let Some(running) = self.running.get(&id) {
            running.entry.events.worked(took);
        }
        match part {
            Ok(Draft::Unfinished) => return Ok(true),
            Ok(Draft::Done(image)) => drafts.show(index, image),
            Ok(Draft::Unavailable) => {}
            Err(error) if error.breaks_engine() => return Err(Broken::at(error, vec![id])),
            Err(error) => tracing::debug!(%error, "no draft"),
        }
        self.due_drafts.pop_front();
        Ok(true)
    }
}

/// The next part of a draft, or the preview where there can be no draft.
fn next_part(engine: &mut GuardedEngine, slot: Slot) -> Result<Draft, EngineError> {
    match engine.draft_part(slot) {
        Ok(Draft::Unavailable) => {}
        Err(error) if !error.breaks_engine() => tracing::debug!(%error, "a preview instead of a draft"),
        part => return part,
    }
    Ok(engine.preview(slot)?.map_or(Draft::Unavailable, Draft::Done))
}
