//! The end of an image: its decoding, in parts where others would wait too long for all of it, and what becomes of it.

use std::time::{Duration, Instant};

use super::{Broken, Drawing, Worker, end_failed};
use crate::domain::engine::{EngineError, RgbImage, Slot};
use crate::domain::ids::JobId;
use crate::queue::event::{JobFailure, QueueEvent};
use crate::queue::guarded::GuardedEngine;
use crate::queue::planner::PlannerState;
use crate::telemetry::metrics;

/// How long those who are being drawn can wait for an image to be decoded: for what one step of theirs takes, less what
/// they have waited already. `None`: there is nobody who waits; or more than one image has done all its steps, and then
/// decoding is what everybody waits for. To go on stepping meanwhile would only let more of them wait for it.
pub(super) fn patience(state: &PlannerState<'_>) -> Option<Duration> {
    let admitted = || state.candidates.iter().filter(|candidate| candidate.is_admitted);
    let complete = admitted().filter(|candidate| candidate.steps_left == 0).count();
    let someone_waits = complete == 1 && complete < admitted().count();
    let step_seconds = state.costs.step_seconds(state.costs.packed_work());
    someone_waits.then(|| Duration::from_secs_f64((step_seconds - state.non_step_work.seconds).max(0.0)))
}

impl Worker {
    /// Decodes an image, or as much of it as there is patience for: then it is on, after the others' next step.
    pub(super) fn finish(
        &mut self,
        engine: &mut GuardedEngine,
        id: JobId,
        patience: Option<Duration>,
    ) -> Result<(), Broken> {
        let Some(Drawing { entry, slot, .. }) = self.drawings.get(&id) else { return Ok(()) };
        let started = Instant::now();
        let drawn = entry.span.in_scope(|| decode(engine, *slot, patience));
        let Some(shown) = self.admitted.iter().find(|shown| shown.id == id).copied() else { return Ok(()) };
        let (took, step_work) = (self.note_aside(started, &shown), shown.step_work);
        if let Some(drawing) = self.drawings.get_mut(&id) {
            drawing.decoding += took;
            drawing.entry.events.worked(took);
        }
        let Some(drawn) = drawn.transpose() else { return Ok(()) };
        let Some(Drawing { entry, decoding, .. }) = self.leave(id) else { return Ok(()) };
        match drawn {
            Ok(image) if image.is_black() => {
                entry.fail(JobFailure::BLACK_IMAGE, "every pixel came out black, which is a fault of the model's");
            }
            Ok(image) => {
                self.shared.update_costs(self.engine, |costs| costs.note_finish(step_work, decoding));
                metrics::finished(self.settings.model.as_str(), entry.spec.pixel_steps(), decoding);
                self.shared.note_finished_image(self.engine);
                entry.events.end(QueueEvent::Finished(image));
            }
            // The engine has let go of the image: it can only be drawn anew, when there is more room.
            Err(EngineError::OutOfMemory(_)) if !self.drawings.is_empty() => {
                self.begin_anew(entry);
                self.admissions_blocked = true;
            }
            Err(EngineError::Fatal(cause)) => {
                self.begin_again_elsewhere(entry, true);
                return Err(Broken { cause, at: Vec::new() });
            }
            Err(error) => end_failed(entry, &error),
        }
        Ok(())
    }
}

/// `None`: patience has ended before the image was done.
fn decode(engine: &mut GuardedEngine, slot: Slot, patience: Option<Duration>) -> Result<Option<RgbImage>, EngineError> {
    if let Some(patience) = patience {
        let started = Instant::now();
        while !engine.decode_part(slot)? {
            if started.elapsed() >= patience {
                return Ok(None);
            }
        }
    }
    engine.finish(slot).map(Some)
}
