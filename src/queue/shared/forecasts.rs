//! Forecasts of the line, worked out no more often than they change.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, SharedQueue};
use crate::domain::ids::JobId;
use crate::queue::cost::CostModel;
use crate::queue::entry::ActiveJob;
use crate::queue::forecast::{Forecast, Outlook};
use crate::queue::{EngineState, Standing};

/// For how long a forecast stands while nobody comes or goes.
const FORECAST_FRESH: Duration = Duration::from_millis(100);

/// A forecast, and what it is of.
pub(super) struct Reading {
    made_at: Instant,
    crowd: u64,
    forecast: Arc<Forecast>,
}

impl SharedQueue {
    pub(in crate::queue) fn standing(&self, id: JobId) -> Option<Standing> {
        self.forecast().standing(id)
    }

    pub(in crate::queue) fn seconds_until_somebody_leaves(&self) -> Option<f64> {
        self.forecast().seconds_until_somebody_leaves()
    }

    /// When those who are here now are likely to end. Worked out anew when somebody has come or gone, or it has grown old:
    /// not once for each job of a list or each client that looks on. The engines' lock is held for the copies only.
    pub(in crate::queue) fn forecast(&self) -> Arc<Forecast> {
        let mut last = self.forecast.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.lock();
        if let Some(reading) = &*last
            && reading.crowd == inner.crowd
            && reading.made_at.elapsed() < FORECAST_FRESH
        {
            return Arc::clone(&reading.forecast);
        }
        let (crowd, outlook) = (inner.crowd, inner.outlook(self.epoch));
        drop(inner);
        let forecast =
            outlook.map_or_else(Forecast::default, |(jobs, costs, engines)| Forecast::new(jobs, &costs, engines));
        let forecast = Arc::new(forecast);
        *last = Some(Reading { made_at: Instant::now(), crowd, forecast: Arc::clone(&forecast) });
        forecast
    }
}

impl Inner {
    /// What a forecast is made of; `None` without an engine.
    fn outlook(&self, epoch: Instant) -> Option<(Vec<Outlook>, CostModel, usize)> {
        // Where engines differ, the first one's measure serves for all.
        let ready = || self.engines.iter().filter(|side| side.state == EngineState::Ready);
        let side = ready().find(|side| side.costs.is_known()).or(self.engines.first())?;
        let now = epoch.elapsed().as_secs_f64();
        let outlook = |shown: &ActiveJob, is_running: bool| Outlook {
            id: shown.id,
            owner: shown.owner,
            weight: shown.terms.owner_priority.weight(),
            rank: shown.urgency(epoch, &side.costs).rank(now),
            work: shown.step_work * f64::from(shown.steps_left),
            alone_seconds: shown.left_seconds(&side.costs),
            is_running,
        };
        let drawn = self.engines.iter().flat_map(|side| &side.admitted).map(|shown| outlook(shown, true));
        let waiting = self.waiting.iter().map(|entry| outlook(&ActiveJob::new(entry, side.scale), false));
        Some((drawn.chain(waiting).collect(), side.costs, ready().count()))
    }
}
