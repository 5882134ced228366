//! Every statement on the table `budget_alerts`.

use sqlx::FromRow;

use super::{BudgetAlert, UsageError};
use crate::auth::{Actor, AuditAction, AuditedKey, audit_in, audit_key_in};
use crate::domain::budget::{BudgetHolder, BudgetLevel};
use crate::domain::month::Month;
use crate::domain::usage::Day;
use crate::store::{Store, StoreError, from_milliseconds, to_milliseconds};

/// The statements on alerts.
#[derive(Debug, Clone)]
pub(super) struct AlertStore(Store);

/// The columns as stored.
#[derive(FromRow)]
struct StoredAlert {
    id: i64,
    holder_kind: String,
    holder_id: String,
    month: i32,
    level: i64,
    at_ms: i64,
    detail: String,
}

impl StoredAlert {
    /// `None` for a row that this program cannot read.
    fn read(self) -> Option<BudgetAlert> {
        Some(BudgetAlert {
            id: self.id,
            holder: BudgetHolder::of(&self.holder_kind, &self.holder_id)?,
            month: Month::with(Day::from_number(self.month)),
            level: BudgetLevel::of_percent(self.level)?,
            at: from_milliseconds(self.at_ms)?,
            detail: serde_json::from_str(&self.detail).ok()?,
        })
    }
}

impl AlertStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    /// Stores an alert and its entry in the audit log. Returns `false` if it is there already.
    pub(super) async fn insert(&self, alert: &BudgetAlert, key: Option<AuditedKey>) -> Result<bool, UsageError> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let inserted = sqlx::query(
            "INSERT INTO budget_alerts (holder_kind, holder_id, month, level, at_ms, detail) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(alert.holder.kind())
        .bind(alert.holder.id_text())
        .bind(alert.month.first().number())
        .bind(i64::from(alert.level.percent()))
        .bind(to_milliseconds(alert.at))
        .bind(alert.detail.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        let (by, detail) = ((alert.at, &Actor::Worker), alert.detail.clone());
        match key {
            Some(key) => audit_key_in(&mut transaction, by, AuditAction::BudgetReached, key, detail).await?,
            None => audit_in(&mut transaction, by, AuditAction::BudgetReached, detail).await?,
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(true)
    }

    /// Alerts after the one with the number `after`, the oldest first: at most `limit`.
    pub(super) async fn after(&self, after: i64, limit: u32) -> Result<Vec<BudgetAlert>, UsageError> {
        let rows: Vec<StoredAlert> = sqlx::query_as(
            "SELECT id, holder_kind, holder_id, month, level, at_ms, detail FROM budget_alerts
             WHERE id > ? ORDER BY id LIMIT ?",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(rows.into_iter().filter_map(StoredAlert::read).collect())
    }
}
