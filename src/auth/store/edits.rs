//! The statement that edits a key.

use sqlx::SqliteConnection;

use super::row::budget_columns;
use crate::auth::KeyFailure;
use crate::auth::record::{Change, KeyEdit};
use crate::domain::ids::KeyId;
use crate::domain::limits::LoraList;
use crate::domain::priority::Priority;
use crate::store::{StoreError, to_milliseconds};

/// Changes a key that is not revoked. Returns `false` if there is none.
pub(super) async fn update(connection: &mut SqliteConnection, id: KeyId, edit: &KeyEdit) -> Result<bool, KeyFailure> {
    let end = Stored::of(edit.expires_at, to_milliseconds);
    let limits = &edit.limits;
    let requests = Stored::of(limits.requests_per_minute, i64::from);
    let jobs = Stored::of(limits.concurrent_jobs, i64::from);
    let megapixel_steps = Stored::of(limits.megapixel_steps_per_day, i64::from);
    let loras = Stored::of(limits.loras.as_ref(), listed);
    let budget = Stored::of(limits.budget, |budget| budget_columns(Some(budget)));
    let (budget_megapixel_steps, budget_money_micros) = budget.value.unwrap_or_default();
    let project = Stored::of(edit.project, |project| project.to_string());
    let edited = sqlx::query(
        "UPDATE api_keys SET name = coalesce(?, name), scope = coalesce(?, scope), \
                             expires_at_ms = iif(?, ?, expires_at_ms), \
                             requests_per_minute = iif(?, ?, requests_per_minute), \
                             concurrent_jobs = iif(?, ?, concurrent_jobs), \
                             megapixel_steps_per_day = iif(?, ?, megapixel_steps_per_day), \
                             priority = coalesce(?, priority), \
                             loras = iif(?, ?, loras), \
                             budget_megapixel_steps = iif(?, ?, budget_megapixel_steps), \
                             budget_money_micros = iif(?, ?, budget_money_micros), \
                             project_id = iif(?, ?, project_id), \
                             version = version + 1 \
         WHERE id = ? AND revoked_at_ms IS NULL",
    )
    .bind(&edit.name)
    .bind(edit.scope.as_ref().map(|scope| scope.to_json().to_string()))
    .bind(end.is_changed)
    .bind(end.value)
    .bind(requests.is_changed)
    .bind(requests.value)
    .bind(jobs.is_changed)
    .bind(jobs.value)
    .bind(megapixel_steps.is_changed)
    .bind(megapixel_steps.value)
    .bind(limits.priority.map(Priority::as_str))
    .bind(loras.is_changed)
    .bind(loras.value)
    .bind(budget.is_changed)
    .bind(budget_megapixel_steps)
    .bind(budget.is_changed)
    .bind(budget_money_micros)
    .bind(project.is_changed)
    .bind(project.value)
    .bind(id.to_string())
    .execute(connection)
    .await
    .map_err(StoreError::from)?;
    Ok(edited.rows_affected() > 0)
}

/// A change as statement parameters.
pub(super) struct Stored<V> {
    pub(super) is_changed: bool,
    pub(super) value: Option<V>,
}

impl<V> Stored<V> {
    pub(super) fn of<T>(change: Change<T>, stored: impl FnOnce(T) -> V) -> Self {
        match change {
            Change::Keep => Self { is_changed: false, value: None },
            Change::Remove => Self { is_changed: true, value: None },
            Change::Set(value) => Self { is_changed: true, value: Some(stored(value)) },
        }
    }
}

/// A list of LoRAs as a JSON array.
pub(super) fn listed(loras: &LoraList) -> String {
    serde_json::Value::from(loras.iter().collect::<Vec<_>>()).to_string()
}
