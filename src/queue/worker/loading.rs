//! Jobs whose adapters are still loading: others pass them, and they are admitted once everything is there.

use std::time::{Duration, Instant};

use super::{Broken, Worker, end_failed};
use crate::domain::engine::EngineError;
use crate::domain::ids::JobId;
use crate::domain::spec::GenerateSpec;
use crate::queue::guarded::GuardedEngine;
use crate::queue::shared::Updates;

/// How often to look whether something is loaded, while nothing else is to do.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a job is the first of those that wait. Its adapters may wait for the room of others that are always in use.
const TURN_MAX: Duration = Duration::from_secs(10);

/// A pending job that waits for its adapters.
pub(super) struct LoadingJob {
    id: JobId,
    spec: GenerateSpec,
    /// Since when it is the first.
    first_since: Option<Instant>,
}

impl Worker {
    /// Loads further what the first of the pending jobs waits for, and marks those that are still waiting: where there is no room
    /// for both, two would push each other's adapters out for ever. Those that ended elsewhere are forgotten.
    pub(super) fn load_further(&mut self, engine: &mut GuardedEngine, updates: &mut Updates) -> Result<(), Broken> {
        let is_pending = |id: JobId| updates.candidates.iter().any(|job| job.id == id && !job.is_admitted);
        self.loading.retain(|job| is_pending(job.id));
        self.end_long_turn();
        if !self.loading.is_empty() {
            let job = self.loading.remove(0);
            if !self.prepare(engine, job.id, &job.spec)? {
                self.loading.insert(0, job);
            }
        }
        let is_loading = |id: JobId| self.loading.iter().any(|job| job.id == id);
        updates.candidates.iter_mut().for_each(|job| job.is_loading = is_loading(job.id));
        Ok(())
    }

    /// Lets the next job be the first where one has been it for long.
    fn end_long_turn(&mut self) {
        let Some(first) = self.loading.first_mut() else { return };
        let since = *first.first_since.get_or_insert_with(Instant::now);
        if since.elapsed() > TURN_MAX {
            first.first_since = None;
            self.loading.rotate_left(1);
        }
    }

    /// Whether a pending job can be admitted now, or waits no longer because it has failed. If not, others pass it.
    pub(super) fn is_loaded(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<bool, Broken> {
        let Some(spec) = self.shared.spec_with_adapters(id) else { return Ok(true) };
        let is_ready = self.prepare(engine, id, &spec)?;
        if !is_ready {
            self.loading.push(LoadingJob { id, spec, first_since: None });
        }
        Ok(is_ready)
    }

    /// Loads further what a job needs. `true`: everything is there, or the job has failed.
    fn prepare(&mut self, engine: &mut GuardedEngine, id: JobId, spec: &GenerateSpec) -> Result<bool, Broken> {
        match engine.prepare(spec) {
            Ok(is_ready) => Ok(is_ready),
            Err(error) if error.breaks_engine() => Err(Broken::at(error, Vec::new())),
            // Until an image has left.
            Err(EngineError::OutOfMemory(_)) if !self.running.is_empty() => Ok(false),
            Err(error) => {
                if let Some(entry) = self.shared.take(self.engine, id) {
                    end_failed(entry, &error);
                }
                Ok(true)
            }
        }
    }
}
