//! Forecasts of the queue, computed no more often than they change.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, SharedQueue};
use crate::domain::ids::JobId;
use crate::queue::cost::CostModel;
use crate::queue::entry::ActiveJob;
use crate::queue::forecast::{Forecast, Outlook};
use crate::queue::{EngineState, Standing};

/// How long a forecast stays valid while no job arrives or leaves.
const FORECAST_FRESH: Duration = Duration::from_millis(100);

/// A cached forecast, and the queue version it is of.
pub(super) struct Reading {
    made_at: Instant,
    version: u64,
    forecast: Arc<Forecast>,
}

impl SharedQueue {
    pub(in crate::queue) fn standing(&self, id: JobId) -> Option<Standing> {
        self.forecast().standing(id)
    }

    pub(in crate::queue) fn seconds_until_next_end(&self) -> Option<f64> {
        self.forecast().seconds_until_next_end()
    }

    /// When the current jobs are likely to end. Recomputed when a job has arrived or left, or the forecast is stale:
    /// not for each job of a list or each watching client. The engines' lock is held only for the copies.
    pub(in crate::queue) fn forecast(&self) -> Arc<Forecast> {
        let mut last = self.forecast.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.lock();
        if let Some(reading) = &*last
            && reading.version == inner.version
            && reading.made_at.elapsed() < FORECAST_FRESH
        {
            return Arc::clone(&reading.forecast);
        }
        let (version, outlook) = (inner.version, inner.outlook(self.epoch));
        drop(inner);
        let forecast =
            outlook.map_or_else(Forecast::default, |(jobs, costs, engines)| Forecast::new(jobs, &costs, engines));
        let forecast = Arc::new(forecast);
        *last = Some(Reading { made_at: Instant::now(), version, forecast: Arc::clone(&forecast) });
        forecast
    }
}

impl Inner {
    /// Input of a forecast; `None` without an engine.
    fn outlook(&self, epoch: Instant) -> Option<(Vec<Outlook>, CostModel, usize)> {
        // Where engines differ, the first one's costs serve for all.
        let ready = || self.engines.iter().filter(|view| view.state == EngineState::Ready);
        let view = ready().find(|view| view.costs.is_known()).or(self.engines.first())?;
        let now = epoch.elapsed().as_secs_f64();
        let outlook = |job: &ActiveJob, is_running: bool| Outlook {
            id: job.id,
            owner: job.owner,
            weight: job.terms.owner_priority.weight(),
            rank: job.urgency(epoch, &view.costs).rank(now),
            work: job.step_work * f64::from(job.steps_left),
            alone_seconds: job.left_seconds(&view.costs),
            is_running,
        };
        let running = self.engines.iter().flat_map(|view| &view.admitted).map(|job| outlook(job, true));
        let waiting = self.waiting.iter().map(|entry| outlook(&ActiveJob::new(entry, view.scale), false));
        Some((running.chain(waiting).collect(), view.costs, ready().count()))
    }
}
