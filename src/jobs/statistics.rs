//! Statistics of the last hour.

use std::time::Duration;

use time::OffsetDateTime;

use super::{JobService, JobsError};
use crate::domain::ids::ModelId;
use crate::queue::Queue;

/// Minutes covered.
const MINUTES: u32 = 60;

/// Statistics of the last hour, and the present load.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Pending jobs.
    pub waiting: usize,
    /// Running jobs.
    pub running: usize,
    /// Maximum pending and running jobs together.
    pub jobs_max: usize,
    /// What ended in each of the last sixty minutes, the oldest first; the last is the current one.
    pub minutes: Vec<Minute>,
    /// Times from acceptance to end of that hour's images; of the newest if there are very many.
    pub latencies: Vec<Duration>,
}

/// What ended in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute {
    /// Its start.
    pub at: OffsetDateTime,
    /// Finished images.
    pub images: u64,
    /// Failed jobs.
    pub failed: u64,
}

impl Statistics {
    /// Latency quantile of the images: 0.5 for the median. `None` without images.
    #[must_use]
    pub fn latency_quantile(&self, share: f64) -> Option<Duration> {
        let last = self.latencies.len().checked_sub(1)?;
        let index = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
        self.latencies.get(index).copied()
    }
}

impl JobService {
    /// Why an engine is considered stalled; `None` when none is. A restart of the process runs the jobs that wait for
    /// it.
    pub fn stalled(&self) -> Option<String> {
        let of = |(model, queue): (&ModelId, &Queue)| Some(format!("`{model}`: {}", queue.stall()?));
        self.0.queues.iter().find_map(of)
    }

    /// The present load, and statistics of the last hour.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn statistics(&self) -> Result<Statistics, JobsError> {
        let minute_now = self.0.clock.now().unix_timestamp() / 60;
        let first = minute_now - i64::from(MINUTES) + 1;
        let counts = self.0.store.ended_by_minute(first, minute_now).await?;
        let mut latencies = self.0.store.latencies(first, minute_now).await?;
        latencies.sort_unstable();
        let minute = |number: i64| {
            let of = |succeeded: bool| {
                let found = counts.iter().find(|count| (count.minute, count.succeeded) == (number, succeeded));
                found.map_or(0, |count| count.jobs)
            };
            let at = OffsetDateTime::from_unix_timestamp(number * 60).map_err(JobsError::storage)?;
            Ok(Minute { at, images: of(true), failed: of(false) })
        };
        let loads = self.0.queues.values().map(Queue::load);
        let (mut waiting, mut running, mut jobs_max) = (0, 0, 0);
        for load in loads {
            waiting += load.waiting;
            running += load.running;
            jobs_max += load.jobs_max;
        }
        let minutes = (first..=minute_now).map(minute).collect::<Result<_, JobsError>>()?;
        Ok(Statistics { waiting, running, jobs_max, minutes, latencies })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_pick_measured_latencies() {
        let of = |milliseconds: &[u64]| Statistics {
            waiting: 0,
            running: 0,
            jobs_max: 1,
            minutes: Vec::new(),
            latencies: milliseconds.iter().copied().map(Duration::from_millis).collect(),
        };
        assert_eq!(of(&[]).latency_quantile(0.5), None);
        assert_eq!(of(&[7]).latency_quantile(0.95), Some(Duration::from_millis(7)));
        let many = of(&[1, 2, 3, 4, 100]);
        assert_eq!(many.latency_quantile(0.5), Some(Duration::from_millis(3)));
        assert_eq!(many.latency_quantile(0.95), Some(Duration::from_millis(100)));
    }
}
