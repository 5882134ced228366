//! Use of keys: the column `last_used_at_ms` and the table `key_requests`.

use time::OffsetDateTime;

use super::KeyStore;
use crate::auth::KeyFailure;
use crate::auth::uses::PendingUse;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};
use crate::store::{StoreError, from_milliseconds, to_milliseconds};

impl KeyStore {
    /// When any key was last used.
    pub(in crate::auth) async fn last_use(&self) -> Result<Option<OffsetDateTime>, KeyFailure> {
        let last: Option<i64> = sqlx::query_scalar("SELECT MAX(last_used_at_ms) FROM api_keys")
            .fetch_one(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        Ok(last.and_then(from_milliseconds))
    }

    /// Sets times later than `future_begins`, written by a clock that was ahead, to `now`: last uses, and rotations, so that
    /// an old value ends in time. Requests counted for future days move to yesterday.
    pub(in crate::auth) async fn pull_back(
        &self,
        future_begins: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), KeyFailure> {
        let (last_day, yesterday) = (Day::of(future_begins), Day::of(now).before(1));
        let (future_begins, now) = (to_milliseconds(future_begins), to_milliseconds(now));
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::from)?;
        for (statement, values) in [
            ("UPDATE api_keys SET last_used_at_ms = ?1 WHERE last_used_at_ms > ?2", [now, future_begins]),
            (
                "UPDATE api_keys SET previous_until_ms = previous_until_ms - (rotated_at_ms - ?1), rotated_at_ms = ?1, \
                                     version = version + 1 \
                 WHERE rotated_at_ms > ?2",
                [now, future_begins],
            ),
            (
                "INSERT INTO key_requests (key_id, day, requests) \
                 SELECT key_id, ?1, sum(requests) FROM key_requests WHERE day > ?2 GROUP BY key_id \
                 ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
                [i64::from(yesterday.number()), i64::from(last_day.number())],
            ),
            (
                "DELETE FROM key_requests WHERE day > ?2 AND ?1 IS NOT NULL",
                [i64::from(yesterday.number()), i64::from(last_day.number())],
            ),
        ] {
            let query = sqlx::query(statement).bind(values[0]).bind(values[1]);
            query.execute(&mut *transaction).await.map_err(StoreError::from)?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Records uses of keys in one transaction, and deletes counts older than [`USAGE_DAYS_KEPT`] before `today`.
    pub(in crate::auth) async fn record_uses(
        &self,
        uses: &[((KeyId, Day), PendingUse)],
        today: Day,
    ) -> Result<(), KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        for ((id, day), noted) in uses {
            // Another process may have written a later use.
            sqlx::query("UPDATE api_keys SET last_used_at_ms = max(coalesce(last_used_at_ms, ?1), ?1) WHERE id = ?2")
                .bind(to_milliseconds(noted.last_at))
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::from)?;
            sqlx::query(
                "INSERT INTO key_requests (key_id, day, requests) VALUES (?, ?, ?) \
                 ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
            )
            .bind(id.to_string())
            .bind(day.number())
            .bind(noted.requests.cast_signed())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
        }
        sqlx::query("DELETE FROM key_requests WHERE day < ?")
            .bind(today.before(USAGE_DAYS_KEPT).number())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// A key's requests per day since `since`, without days that had none.
    pub(in crate::auth) async fn requests_by_day(&self, id: KeyId, since: Day) -> Result<Vec<(Day, u64)>, KeyFailure> {
        let rows: Vec<(i32, i64)> =
            sqlx::query_as("SELECT day, requests FROM key_requests WHERE key_id = ? AND day >= ? ORDER BY day")
                .bind(id.to_string())
                .bind(since.number())
                .fetch_all(self.0.pool())
                .await
                .map_err(StoreError::from)?;
        let read = |(day, requests): (i32, i64)| (Day::from_number(day), requests.unsigned_abs());
        Ok(rows.into_iter().map(read).collect())
    }
}
