//! Jobs whose adapters are still loading: others pass them, and they are admitted once everything is there.
//!
//! Images that run keep their adapters in memory, so jobs that pass could keep the room that one needs forever. Only so many
//! pass it: then further jobs with adapters wait behind it.

use std::time::{Duration, Instant};

use super::{Broken, Worker, end_failed};
use crate::domain::engine::EngineError;
use crate::domain::ids::JobId;
use crate::domain::spec::GenerateSpec;
use crate::queue::guarded::GuardedEngine;
use crate::queue::shared::Updates;

/// How often to look whether something is loaded, while nothing else is to do.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a job is the first of those that wait, if no other has passed it too often: it may need memory that is always in use.
const TURN_MAX: Duration = Duration::from_secs(10);

/// How many jobs with adapters may pass one whose adapters are loading.
const PASSED_MAX: u32 = 32;

/// A pending job that waits for its adapters, or that found them and is not yet admitted.
pub(super) struct LoadingJob {
    id: JobId,
    spec: GenerateSpec,
    /// How many jobs with adapters have passed it.
    passed: u32,
    is_loaded: bool,
    /// Since when it is the first.
    first_since: Option<Instant>,
}

/// How far the adapters of a job are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Everything is there, or the job has failed.
    Loaded,
    Loading,
    /// The device has no memory for them until an image has left, whether that uses adapters or not.
    NoMemory,
}

impl LoadingJob {
    /// Whether others may pass it no longer.
    fn is_overdue(&self) -> bool {
        !self.is_loaded && self.passed >= PASSED_MAX
    }

    fn note(&mut self, progress: Progress) {
        self.is_loaded = progress == Progress::Loaded;
        // Others with adapters are not the cause, and need not wait.
        self.passed = if progress == Progress::NoMemory { 0 } else { self.passed };
    }
}

impl Worker {
    /// Whether a job waits for its adapters.
    fn is_loading(&self, id: JobId) -> bool {
        self.loading.iter().any(|job| job.id == id && !job.is_loaded)
    }

    /// Loads further what the first pending job waits for, and marks those that still wait: where there is no room for both, two would
    /// push each other's adapters out for ever. Those that ended elsewhere are forgotten.
    pub(super) fn load_further(&mut self, engine: &mut GuardedEngine, updates: &mut Updates) -> Result<(), Broken> {
        let is_pending = |id: JobId| updates.candidates.iter().any(|job| job.id == id && !job.is_admitted);
        self.loading.retain(|job| is_pending(job.id));
        self.end_long_turn();
        let mut loading = std::mem::take(&mut self.loading);
        if let Some(job) = loading.iter_mut().find(|job| !job.is_loaded) {
            let progress = self.prepare(engine, job.id, &job.spec)?;
            job.note(progress);
        }
        self.loading = loading;
        updates.candidates.iter_mut().for_each(|job| job.is_loading = self.is_loading(job.id));
        Ok(())
    }

    /// Lets the next job be the first where one has been it for long and no other need wait for it.
    fn end_long_turn(&mut self) {
        let Some(place) = self.loading.iter().position(|job| !job.is_loaded) else { return };
        let first = &mut self.loading[place];
        let since = *first.first_since.get_or_insert_with(Instant::now);
        if since.elapsed() > TURN_MAX && !first.is_overdue() {
            first.first_since = None;
            let job = self.loading.remove(place);
            self.loading.push(job);
        }
    }

    /// Whether a pending job can be admitted now, or waits no longer because it has failed. If not, others pass it.
    pub(super) fn is_loaded(&mut self, engine: &mut GuardedEngine, id: JobId) -> Result<bool, Broken> {
        let Some(spec) = self.shared.spec_with_adapters(id) else { return Ok(true) };
        let place = self.loading.iter().position(|job| job.id == id);
        let before = place.unwrap_or(self.loading.len());
        let must_wait = self.loading[..before].iter().any(LoadingJob::is_overdue);
        let progress = if must_wait { Progress::Loading } else { self.prepare(engine, id, &spec)? };
        let is_loaded = progress == Progress::Loaded;
        if is_loaded {
            for job in self.loading[..before].iter_mut().filter(|job| !job.is_loaded) {
                job.passed = job.passed.saturating_add(1);
            }
        }
        match place {
            Some(place) => self.loading[place].note(progress),
            None if is_loaded => {}
            None => self.loading.push(LoadingJob { id, spec, passed: 0, is_loaded, first_since: None }),
        }
        Ok(is_loaded)
    }

    /// Loads further what a job needs.
    fn prepare(&mut self, engine: &mut GuardedEngine, id: JobId, spec: &GenerateSpec) -> Result<Progress, Broken> {
        match engine.prepare(spec) {
            Ok(is_loaded) => Ok(if is_loaded { Progress::Loaded } else { Progress::Loading }),
            Err(error) if error.breaks_engine() => Err(Broken::at(error, Vec::new())),
            Err(EngineError::OutOfMemory(_)) if !self.running.is_empty() => Ok(Progress::NoMemory),
            Err(error) => {
                if let Some(entry) = self.shared.take(self.engine, id) {
                    end_failed(entry, &error);
                }
                Ok(Progress::Loaded)
            }
        }
    }
}
