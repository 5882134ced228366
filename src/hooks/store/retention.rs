//! How long the log of deliveries is kept.

use time::OffsetDateTime;

use super::HookStore;
use super::deliveries::list;
use crate::hooks::error::WebhookError;
use crate::store::to_milliseconds;

/// Rows that one statement deletes, so that it ends soon.
const ROWS_AT_ONCE: u32 = 1000;

impl HookStore {
    /// Deliveries that are pending.
    pub(in crate::hooks) async fn pending(&self) -> Result<u64, WebhookError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'")
            .fetch_one(self.0.pool())
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Deletes deliveries that ended before `cutoff`, and those beyond the `kept` newest of their key; some at a time. Returns
    /// how many.
    pub(in crate::hooks) async fn forget(&self, cutoff: OffsetDateTime, kept: u32) -> Result<u64, WebhookError> {
        let old = sqlx::query(
            "DELETE FROM webhook_deliveries WHERE number IN
                 (SELECT number FROM webhook_deliveries WHERE ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?)",
        );
        let old = old.bind(to_milliseconds(cutoff)).bind(ROWS_AT_ONCE).execute(self.0.pool()).await?;
        // Read first: this looks at all rows, and would keep others from writing.
        let beyond: Vec<i64> = sqlx::query_scalar(
            "SELECT number FROM (
                 SELECT number, row_number() OVER (PARTITION BY key_id ORDER BY number DESC) AS place
                 FROM webhook_deliveries WHERE ended_at_ms IS NOT NULL)
             WHERE place > ? LIMIT ?",
        )
        .bind(kept)
        .bind(ROWS_AT_ONCE)
        .fetch_all(self.0.pool())
        .await?;
        if beyond.is_empty() {
            return Ok(old.rows_affected());
        }
        // One that was asked for again meanwhile is pending.
        let deleted = sqlx::query(
            "DELETE FROM webhook_deliveries
             WHERE number IN (SELECT value FROM json_each(?)) AND ended_at_ms IS NOT NULL",
        );
        let deleted = deleted.bind(list(&beyond)).execute(self.0.pool()).await?;
        Ok(old.rows_affected() + deleted.rows_affected())
    }

    /// Makes due what a clock that was ahead has put off beyond `latest`.
    pub(in crate::hooks) async fn pull_back(
        &self,
        latest: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), WebhookError> {
        sqlx::query("UPDATE webhook_deliveries SET next_at_ms = ? WHERE state = 'pending' AND next_at_ms > ?")
            .bind(to_milliseconds(now))
            .bind(to_milliseconds(latest))
            .execute(self.0.pool())
            .await?;
        Ok(())
    }
}
