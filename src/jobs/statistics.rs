//! How the last hour went.

use std::time::Duration;

use time::OffsetDateTime;

use super::{JobService, JobsError};
use crate::domain::ids::ModelId;
use crate::queue::Queue;

/// Minutes that are told of.
const MINUTES: u32 = 60;

/// How the last hour went, and what is going on now.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Jobs in line.
    pub waiting: usize,
    /// Jobs being drawn.
    pub drawing: usize,
    /// Most jobs in line and being drawn together.
    pub jobs_max: usize,
    /// What ended in each of the last sixty minutes, the oldest first; the last is the current one.
    pub minutes: Vec<Minute>,
    /// From acceptance to end, of the images of that time; of the newest of them where there are very many.
    pub latencies: Vec<Duration>,
}

/// What ended in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute {
    /// Its beginning.
    pub at: OffsetDateTime,
    /// Images that were finished.
    pub images: u64,
    /// Jobs that failed.
    pub failed: u64,
}

impl Statistics {
    /// The time that the given share of the images took at most: 0.5 for the median. `None` without images.
    #[must_use]
    pub fn latency_quantile(&self, share: f64) -> Option<Duration> {
        let last = self.latencies.len().checked_sub(1)?;
        let place = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
        self.latencies.get(place).copied()
    }
}

impl JobService {
    /// Why an engine is thought to draw nothing any more, in words; `None` when none is. Jobs that wait for it are drawn
    /// when the process is started again.
    pub fn stalled(&self) -> Option<String> {
        let of = |(model, queue): (&ModelId, &Queue)| Some(format!("`{model}`: {}", queue.stall()?));
        self.0.queues.iter().find_map(of)
    }

    /// What goes on, and how the last hour went.
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
        let (mut waiting, mut drawing, mut jobs_max) = (0, 0, 0);
        for load in loads {
            waiting += load.waiting;
            drawing += load.drawing;
            jobs_max += load.jobs_max;
        }
        let minutes = (first..=minute_now).map(minute).collect::<Result<_, JobsError>>()?;
        Ok(Statistics { waiting, drawing, jobs_max, minutes, latencies })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_those_that_are_there() {
        let of = |milliseconds: &[u64]| Statistics {
            waiting: 0,
            drawing: 0,
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
