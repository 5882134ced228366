//! How keys were used: the column `last_used_at_ms` and the table `key_requests`.

use super::{KeyStore, to_milliseconds};
use crate::auth::KeyFailure;
use crate::auth::uses::PendingUse;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};
use crate::store::StoreError;

impl KeyStore {
    /// Notes how keys were used, all in one transaction, and forgets what was too long ago.
    pub(in crate::auth) async fn record_uses(&self, uses: &[((KeyId, Day), PendingUse)]) -> Result<(), KeyFailure> {
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
        if let Some(today) = uses.iter().map(|((_, day), _)| *day).max() {
            sqlx::query("DELETE FROM key_requests WHERE day < ?")
                .bind(today.before(USAGE_DAYS_KEPT).number())
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::from)?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// A key's requests in each day since `since`, where there were any.
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
