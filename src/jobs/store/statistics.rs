//! Statistics of ended jobs.

use std::time::Duration;

use crate::jobs::JobsError;
use crate::jobs::store::JobStore;

/// Maximum images whose latency is read.
const LATENCIES_MAX: u32 = 1000;

const MINUTE_MILLISECONDS: i64 = 60_000;

/// Number of jobs that ended in one minute, with or without an image.
#[derive(Debug, sqlx::FromRow)]
pub(in crate::jobs) struct EndedCount {
    /// Minutes since 1970.
    pub(in crate::jobs) minute: i64,
    pub(in crate::jobs) succeeded: bool,
    #[sqlx(try_from = "i64")]
    pub(in crate::jobs) jobs: u64,
}

impl JobStore {
    /// Jobs that succeeded or failed from the minute `first` to `last`.
    pub(in crate::jobs) async fn ended_by_minute(&self, first: i64, last: i64) -> Result<Vec<EndedCount>, JobsError> {
        let rows = sqlx::query_as(
            "SELECT finished_at_ms / ?1 AS minute, status = 'succeeded' AS succeeded, COUNT(*) AS jobs FROM jobs
             WHERE finished_at_ms >= ?2 * ?1 AND finished_at_ms < (?3 + 1) * ?1 AND status IN ('succeeded', 'failed') GROUP BY minute, succeeded",
        )
        .bind(MINUTE_MILLISECONDS)
        .bind(first)
        .bind(last)
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows)
    }

    /// Latencies, from acceptance to end, of the images that finished in the minutes `first` to `last`: the newest ones,
    /// up to a maximum. Images dated in the future are left out.
    pub(in crate::jobs) async fn latencies(&self, first: i64, last: i64) -> Result<Vec<Duration>, JobsError> {
        let rows: Vec<i64> = sqlx::query_scalar(
            "SELECT finished_at_ms - created_at_ms FROM jobs WHERE finished_at_ms >= ?1 AND finished_at_ms < ?2 AND status = 'succeeded'
             ORDER BY finished_at_ms DESC LIMIT ?3",
        )
        .bind(first * MINUTE_MILLISECONDS)
        .bind((last + 1) * MINUTE_MILLISECONDS)
        .bind(LATENCIES_MAX)
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.into_iter().map(|took| Duration::from_millis(took.max(0).cast_unsigned())).collect())
    }
}
