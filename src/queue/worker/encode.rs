//! The images of an admitted request: they are encoded part by part, between the steps of others.

use std::time::Instant;

use super::{Broken, Worker, end_failed};
use crate::domain::engine::EngineError;
use crate::domain::ids::JobId;
use crate::queue::guarded::GuardedEngine;

impl Worker {
    /// Encodes a part of an image's request. After the last one it steps with the others.
    pub(super) fn encode(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<(), Broken> {
        let Some(running) = self.running.get(&id) else { return Ok(()) };
        let started = Instant::now();
        let encoded = running.entry.span.in_scope(|| engine.encode_part(running.slot));
        let Some(job) = self.admitted.iter().find(|job| job.id == id).copied() else { return Ok(()) };
        let took = self.note_non_step_work(started, &job);
        if let Some(running) = self.running.get(&id) {
            running.entry.events.worked(took);
        }
        let error = match encoded {
            Ok(is_complete) => {
                for job in self.admitted.iter_mut().filter(|job| job.id == id) {
                    job.is_encoding = !is_complete;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        // The engine has dropped the image.
        let Some(running) = self.remove(id) else { return Ok(()) };
        match error {
            EngineError::OutOfMemory(_) if !self.running.is_empty() => {
                self.admissions_blocked = true;
                self.shared.put_back(running.entry);
            }
            error if error.breaks_engine() => {
                // The only job it was working on.
                self.requeue(running.entry, true);
                return Err(Broken::at(error, Vec::new()));
            }
            error => end_failed(running.entry, &error),
        }
        Ok(())
    }
}
