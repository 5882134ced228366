//! Reports over many keys: requests of the table `key_requests`, and names.

use sqlx::FromRow;

use super::row::StoredRow;
use super::{KeyRow, KeyStore};
use crate::auth::KeyFailure;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, DayRange};
use crate::store::StoreError;

/// A key's name and prefix as stored.
#[derive(FromRow)]
pub(in crate::auth) struct StoredName {
    pub(in crate::auth) id: String,
    pub(in crate::auth) name: String,
    pub(in crate::auth) public_id: String,
}

impl KeyStore {
    /// Requests of each key in the days, by id: at most `limit` keys after `after`, without those that had none.
    pub(in crate::auth) async fn requests_by_key(
        &self,
        days: DayRange,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<(String, u64)>, KeyFailure> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT key_id, sum(requests) FROM key_requests WHERE day BETWEEN ?1 AND ?2 AND key_id > ?3 \
             GROUP BY key_id ORDER BY key_id LIMIT ?4",
        )
        .bind(days.from.number())
        .bind(days.to.number())
        .bind(after.map_or_else(String::new, |id| id.to_string()))
        .bind(limit)
        .fetch_all(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(rows.into_iter().map(|(id, requests)| (id, requests.unsigned_abs())).collect())
    }

    /// Requests of all keys by day, without days that had none.
    pub(in crate::auth) async fn all_requests_by_day(&self, days: DayRange) -> Result<Vec<(Day, u64)>, KeyFailure> {
        let rows: Vec<(i32, i64)> = sqlx::query_as(
            "SELECT day, sum(requests) FROM key_requests WHERE day BETWEEN ? AND ? GROUP BY day ORDER BY day",
        )
        .bind(days.from.number())
        .bind(days.to.number())
        .fetch_all(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(rows.into_iter().map(|(day, requests)| (Day::from_number(day), requests.unsigned_abs())).collect())
    }

    /// The names of these keys; those that are not there are left out.
    pub(in crate::auth) async fn names(&self, ids: &[KeyId]) -> Result<Vec<StoredName>, KeyFailure> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let rows =
            sqlx::query_as("SELECT id, name, public_id FROM api_keys WHERE id IN (SELECT value FROM json_each(?))")
                .bind(serde_json::Value::from(ids).to_string())
                .fetch_all(self.0.pool())
                .await
                .map_err(StoreError::from)?;
        Ok(rows)
    }

    /// Rows with a budget that are not revoked, the oldest first, after `after`.
    pub(in crate::auth) async fn with_budgets(
        &self,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<KeyRow>, KeyFailure> {
        let stored: Vec<StoredRow> = sqlx::query_as(select_keys!(
            "WHERE revoked_at_ms IS NULL AND (budget_megapixel_steps > 0 OR budget_money_micros > 0) \
             AND id > ? ORDER BY id LIMIT ?"
        ))
        .bind(after.map_or_else(String::new, |id| id.to_string()))
        .bind(limit)
        .fetch_all(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        stored.into_iter().map(KeyRow::try_from).collect()
    }
}
