//! Every statement on the table `api_keys`; the tables of the administrator and of the audit log are in modules below.
//!
//! A change and its audit entry are written in one transaction.

macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "SELECT id, public_id, name, secret_hash, secret_tag, scope, version, created_at_ms, expires_at_ms, ",
            "revoked_at_ms, last_used_at_ms, rotated_at_ms, previous_public_id, previous_secret_hash, ",
            "previous_secret_tag, previous_until_ms, requests_per_minute, concurrent_jobs, megapixel_steps_per_day, ",
            "priority, loras, budget_megapixel_steps, budget_money_micros, project_id, group_requests_per_minute, ",
            "group_concurrent_jobs, group_megapixel_steps_per_day, group_budget_megapixel_steps, ",
            "group_budget_money_micros FROM api_keys LEFT JOIN ( ",
            "SELECT id AS group_id, requests_per_minute AS group_requests_per_minute, ",
            "concurrent_jobs AS group_concurrent_jobs, megapixel_steps_per_day AS group_megapixel_steps_per_day, ",
            "budget_megapixel_steps AS group_budget_megapixel_steps, ",
            "budget_money_micros AS group_budget_money_micros FROM projects) ON group_id = project_id ",
            $rest
        )
    };
}

pub(super) mod admin;
pub(super) mod audit;
mod edits;
mod projects;
mod row;
mod usage;
mod uses;

use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::audit::NewEntry;
use crate::auth::key::PublicId;
use crate::auth::record::{KeyEdit, KeyQuery, KeyRef, KeyState};
use crate::domain::ids::{KeyId, NamespaceId};
use crate::store::{ChangeMark, Store, StoreError, to_milliseconds};
use edits::{listed, update};
use row::StoredRow;
pub(super) use row::{KeyRow, StoredValue};
pub(super) use usage::StoredName;

/// The statements on keys.
#[derive(Debug, Clone)]
pub(super) struct KeyStore(Store);

impl KeyStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(super) fn change_mark(&self) -> Option<ChangeMark> {
        self.0.change_mark()
    }

    pub(super) async fn insert(&self, row: &KeyRow, entry: &NewEntry<'_>) -> Result<(), KeyFailure> {
        let (budget_megapixel_steps, budget_money_micros) = row::budget_columns(row.limits.budget);
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        sqlx::query(
            "INSERT INTO api_keys (id, public_id, name, secret_hash, secret_tag, scope, version, \
                                   created_at_ms, expires_at_ms, \
                                   requests_per_minute, concurrent_jobs, megapixel_steps_per_day, \
                                   priority, loras, budget_megapixel_steps, budget_money_micros, project_id) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.id.to_string())
        .bind(row.value.public_id.as_str())
        .bind(&row.name)
        .bind(row.value.hash.as_str())
        .bind(row.value.tag.as_bytes())
        .bind(row.scope.to_json().to_string())
        .bind(row.version)
        .bind(to_milliseconds(row.created_at))
        .bind(row.expires_at.map(to_milliseconds))
        .bind(row.limits.requests_per_minute)
        .bind(row.limits.concurrent_jobs)
        .bind(row.limits.megapixel_steps_per_day)
        .bind(row.limits.priority.as_str())
        .bind(row.limits.loras.as_ref().map(listed))
        .bind(budget_megapixel_steps)
        .bind(budget_money_micros)
        .bind(row.limits.project.map(|project| project.id.to_string()))
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        audit::insert(&mut transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// The row whose current value, or value before the last rotation, has this public id.
    pub(super) async fn by_public_id(&self, public_id: PublicId) -> Result<Option<KeyRow>, KeyFailure> {
        let stored: Option<StoredRow> = sqlx::query_as(select_keys!("WHERE public_id = ?1 OR previous_public_id = ?1"))
            .bind(public_id.as_str())
            .fetch_optional(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.map(KeyRow::try_from).transpose()
    }

    pub(super) async fn find(&self, key: KeyRef) -> Result<Option<KeyRow>, KeyFailure> {
        let id = match key {
            KeyRef::Prefix(prefix) => return self.by_public_id(prefix).await,
            KeyRef::Id(id) => id,
        };
        let stored: Option<StoredRow> = sqlx::query_as(select_keys!("WHERE id = ?"))
            .bind(id.to_string())
            .fetch_optional(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.map(KeyRow::try_from).transpose()
    }

    /// Rows after `after`, the oldest first.
    pub(super) async fn oldest_first(&self, after: Option<KeyId>, limit: u32) -> Result<Vec<KeyRow>, KeyFailure> {
        let stored: Vec<StoredRow> = sqlx::query_as(select_keys!("WHERE id > ? ORDER BY id LIMIT ?"))
            .bind(after.map_or_else(String::new, |id| id.to_string()))
            .bind(limit)
            .fetch_all(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.into_iter().map(KeyRow::try_from).collect()
    }

    /// Rows, the newest first: at most `query.keys_max`, and one more where there are more.
    pub(super) async fn newest_first(&self, query: KeyQuery, now: OffsetDateTime) -> Result<Vec<KeyRow>, KeyFailure> {
        let stored: Vec<StoredRow> = sqlx::query_as(select_keys!(
            "WHERE (?1 IS NULL OR id < ?1) AND (?2 IS NULL OR ?2 = CASE \
                 WHEN revoked_at_ms IS NOT NULL THEN 'revoked' \
                 WHEN expires_at_ms <= ?3 THEN 'expired' \
                 ELSE 'active' END) \
             ORDER BY id DESC LIMIT ?4"
        ))
        .bind(query.before.map(|id| id.to_string()))
        .bind(query.state.map(KeyState::as_str))
        .bind(to_milliseconds(now))
        .bind(query.keys_max + 1)
        .fetch_all(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        stored.into_iter().map(KeyRow::try_from).collect()
    }

    /// Rows that are not revoked and whose scope names the namespace, the oldest first.
    pub(super) async fn naming(&self, namespace: NamespaceId, limit: u32) -> Result<Vec<KeyRow>, KeyFailure> {
        // The scope is JSON that this program wrote, and no other id contains this one.
        let query = select_keys!("WHERE revoked_at_ms IS NULL AND instr(scope, ?) > 0 ORDER BY id LIMIT ?");
        let stored: Vec<StoredRow> = sqlx::query_as(query)
            .bind(namespace.to_string())
            .bind(limit)
            .fetch_all(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.into_iter().map(KeyRow::try_from).collect()
    }

    pub(super) async fn count(&self) -> Result<u64, KeyFailure> {
        let count: (i64,) =
            sqlx::query_as("SELECT count(*) FROM api_keys").fetch_one(self.0.pool()).await.map_err(StoreError::from)?;
        Ok(count.0.unsigned_abs())
    }

    /// Changes a key that is not revoked. Returns `false` if there is none.
    pub(super) async fn edit(&self, id: KeyId, edit: &KeyEdit, entry: &NewEntry<'_>) -> Result<bool, KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let has_changed = update(&mut transaction, id, edit).await?;
        if has_changed {
            audit::insert(&mut transaction, entry).await?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(has_changed)
    }

    /// Gives an active key a new value. The old one works until `until`; `None` ends it at once. Returns `false` if no active
    /// key has this id.
    pub(super) async fn rotate(
        &self,
        id: KeyId,
        value: &StoredValue,
        until: Option<OffsetDateTime>,
        entry: &NewEntry<'_>,
    ) -> Result<bool, KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        // The right-hand sides read the row as it was before the update.
        let rotated = sqlx::query(
            "UPDATE api_keys SET previous_public_id = iif(?1 IS NULL, NULL, public_id), \
                                 previous_secret_hash = iif(?1 IS NULL, NULL, secret_hash), \
                                 previous_secret_tag = iif(?1 IS NULL, NULL, secret_tag), \
                                 previous_until_ms = ?1, public_id = ?2, secret_hash = ?3, secret_tag = ?4, \
                                 rotated_at_ms = ?5, version = version + 1 \
             WHERE id = ?6 AND revoked_at_ms IS NULL AND (expires_at_ms IS NULL OR expires_at_ms > ?5)",
        )
        .bind(until.map(to_milliseconds))
        .bind(value.public_id.as_str())
        .bind(value.hash.as_str())
        .bind(value.tag.as_bytes())
        .bind(to_milliseconds(entry.at))
        .bind(id.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        let has_changed = rotated.rows_affected() > 0;
        if has_changed {
            audit::insert(&mut transaction, entry).await?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(has_changed)
    }

    /// Revokes a key. The time of the first revocation stays.
    pub(super) async fn revoke(&self, id: KeyId, entry: &NewEntry<'_>) -> Result<(), KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let revoked = sqlx::query(
            "UPDATE api_keys SET revoked_at_ms = ?, version = version + 1 WHERE id = ? AND revoked_at_ms IS NULL",
        )
        .bind(to_milliseconds(entry.at))
        .bind(id.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        if revoked.rows_affected() > 0 {
            audit::insert(&mut transaction, entry).await?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}
