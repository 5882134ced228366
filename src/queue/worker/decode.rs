//! The end of an image: its decoding, in parts where others would wait too long, and its outcome.

use std::time::{Duration, Instant};

use super::{Broken, Running, Worker, end_failed};
use crate::domain::engine::{EngineError, Slot};
use crate::domain::ids::JobId;
use crate::domain::image::RgbImage;
use crate::queue::event::{JobFailure, QueueEvent};
use crate::queue::guarded::GuardedEngine;
use crate::queue::planner::PlannerState;
use crate::telemetry::metrics;

/// Time that decoding may take before the next step of the other running images: the time of one step, less the non-step work
/// since the last one. `None`, no limit: nothing else runs, or several images are ready to decode, and further steps would only
/// add more.
pub(super) fn patience(state: &PlannerState<'_>) -> Option<Duration> {
    let admitted = || state.candidates.iter().filter(|candidate| candidate.is_admitted);
    let complete = admitted().filter(|candidate| candidate.steps_left == 0).count();
    let others_wait = complete == 1 && complete < admitted().count();
    let step_seconds = state.costs.step_seconds(state.costs.packed_work());
    others_wait.then(|| Duration::from_secs_f64((step_seconds - state.non_step_work.seconds).max(0.0)))
}

impl Worker {
    /// Decodes an image, or as much of it as patience allows: the rest follows after the others' next step.
    pub(super) fn finish(
        &mut self,
        engine: &mut GuardedEngine,
        id: JobId,
        patience: Option<Duration>,
    ) -> Result<(), Broken> {
        let Some(Running { entry, slot, .. }) = self.running.get(&id) else { return Ok(()) };
        let started = Instant::now();
        let decoded = entry.span.in_scope(|| decode(engine, *slot, patience));
        let Some(job) = self.admitted.iter().find(|job| job.id == id).copied() else { return Ok(()) };
        let (took, step_work) = (self.note_non_step_work(started, &job), job.step_work);
        if let Some(running) = self.running.get_mut(&id) {
            running.decoding += took;
            running.entry.events.worked(took);
        }
        let Some(decoded) = decoded.transpose() else { return Ok(()) };
        let Some(Running { entry, decoding, .. }) = self.remove(id) else { return Ok(()) };
        match decoded {
            Ok(image) if image.is_black() => {
                entry.fail(JobFailure::BLACK_IMAGE, "every pixel is black, which is a fault of the model");
            }
            Ok(image) => {
                self.shared.update_costs(self.engine, |costs| costs.note_finish(step_work, decoding));
                metrics::finished(self.settings.model.as_str(), entry.spec.pixel_steps(), decoding);
                self.shared.note_finished_image(self.engine);
                entry.events.end(QueueEvent::Finished(image));
            }
            // The engine has dropped the image: it can only be restarted, when there is more memory.
            Err(EngineError::OutOfMemory(_)) if !self.running.is_empty() => {
                self.restart(entry);
                self.admissions_blocked = true;
            }
            Err(error) if error.breaks_engine() => {
                self.requeue(entry, true);
                return Err(Broken::at(error, Vec::new()));
            }
            Err(error) => end_failed(entry, &error),
        }
        Ok(())
    }
}

/// `None`: patience ended before the image was decoded.
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
