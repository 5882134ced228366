//! Every statement on the table `projects`, and those on the keys that belong to one.

use sqlx::FromRow;

use super::edits::Stored;
use super::row::{budget_columns, read_budget};
use super::{KeyStore, audit};
use crate::auth::KeyFailure;
use crate::auth::audit::NewEntry;
use crate::auth::projects::{PROJECTS_MAX, ProjectEdit, ProjectError, ProjectRecord};
use crate::domain::ids::ProjectId;
use crate::domain::limits::GroupLimits;
use crate::store::{StoreError, from_milliseconds, to_milliseconds};

macro_rules! select_projects {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, requests_per_minute, concurrent_jobs, megapixel_steps_per_day, budget_megapixel_steps, ",
            "budget_money_micros, created_at_ms, (SELECT count(*) FROM api_keys ",
            "WHERE project_id = projects.id AND revoked_at_ms IS NULL) AS keys FROM projects ",
            $rest
        )
    };
}

/// The columns as stored.
#[derive(FromRow)]
struct StoredProject {
    id: String,
    name: String,
    requests_per_minute: Option<u32>,
    concurrent_jobs: Option<u32>,
    megapixel_steps_per_day: Option<u32>,
    budget_megapixel_steps: Option<i64>,
    budget_money_micros: Option<i64>,
    created_at_ms: i64,
    keys: i64,
}

impl TryFrom<StoredProject> for ProjectRecord {
    type Error = KeyFailure;

    fn try_from(stored: StoredProject) -> Result<Self, KeyFailure> {
        let corrupt = |column| KeyFailure::CorruptProject { project_id: stored.id.clone(), column };
        Ok(Self {
            id: stored.id.parse().map_err(|_| corrupt("id"))?,
            created_at: from_milliseconds(stored.created_at_ms).ok_or_else(|| corrupt("created_at_ms"))?,
            limits: GroupLimits {
                requests_per_minute: stored.requests_per_minute,
                concurrent_jobs: stored.concurrent_jobs,
                megapixel_steps_per_day: stored.megapixel_steps_per_day,
                budget: read_budget(stored.budget_megapixel_steps, stored.budget_money_micros),
            },
            keys: stored.keys.unsigned_abs(),
            name: stored.name,
        })
    }
}

impl KeyStore {
    /// All projects, by name.
    pub(in crate::auth) async fn projects(&self) -> Result<Vec<ProjectRecord>, KeyFailure> {
        let stored: Vec<StoredProject> = sqlx::query_as(select_projects!("ORDER BY name, id LIMIT ?"))
            .bind(PROJECTS_MAX)
            .fetch_all(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.into_iter().map(ProjectRecord::try_from).collect()
    }

    pub(in crate::auth) async fn project(&self, id: ProjectId) -> Result<Option<ProjectRecord>, KeyFailure> {
        let stored: Option<StoredProject> = sqlx::query_as(select_projects!("WHERE id = ?"))
            .bind(id.to_string())
            .fetch_optional(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        stored.map(ProjectRecord::try_from).transpose()
    }

    pub(in crate::auth) async fn insert_project(
        &self,
        project: &ProjectRecord,
        entry: &NewEntry<'_>,
    ) -> Result<(), ProjectError> {
        let (budget_megapixel_steps, budget_money_micros) = budget_columns(project.limits.budget);
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::from)?;
        let count: Result<u32, _> =
            sqlx::query_scalar("SELECT count(*) FROM projects").fetch_one(&mut *transaction).await;
        if count.map_err(StoreError::from)? >= PROJECTS_MAX {
            return Err(ProjectError::TooMany);
        }
        sqlx::query(
            "INSERT INTO projects (id, name, requests_per_minute, concurrent_jobs, megapixel_steps_per_day, \
                                   budget_megapixel_steps, budget_money_micros, created_at_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(project.id.to_string())
        .bind(&project.name)
        .bind(project.limits.requests_per_minute)
        .bind(project.limits.concurrent_jobs)
        .bind(project.limits.megapixel_steps_per_day)
        .bind(budget_megapixel_steps)
        .bind(budget_money_micros)
        .bind(to_milliseconds(project.created_at))
        .execute(&mut *transaction)
        .await
        .map_err(|error| taken(error, &project.name))?;
        audit::insert(&mut transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Changes a project. Returns `false` if there is none.
    pub(in crate::auth) async fn edit_project(
        &self,
        id: ProjectId,
        edit: &ProjectEdit,
        entry: &NewEntry<'_>,
    ) -> Result<bool, ProjectError> {
        let requests = Stored::of(edit.limits.requests_per_minute, i64::from);
        let jobs = Stored::of(edit.limits.concurrent_jobs, i64::from);
        let megapixel_steps = Stored::of(edit.limits.megapixel_steps_per_day, i64::from);
        let budget = Stored::of(edit.limits.budget, |budget| budget_columns(Some(budget)));
        let (budget_megapixel_steps, budget_money_micros) = budget.value.unwrap_or_default();
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let edited = sqlx::query(
            "UPDATE projects SET name = coalesce(?, name), \
                                 requests_per_minute = iif(?, ?, requests_per_minute), \
                                 concurrent_jobs = iif(?, ?, concurrent_jobs), \
                                 megapixel_steps_per_day = iif(?, ?, megapixel_steps_per_day), \
                                 budget_megapixel_steps = iif(?, ?, budget_megapixel_steps), \
                                 budget_money_micros = iif(?, ?, budget_money_micros) \
             WHERE id = ?",
        )
        .bind(&edit.name)
        .bind(requests.is_changed)
        .bind(requests.value)
        .bind(jobs.is_changed)
        .bind(jobs.value)
        .bind(megapixel_steps.is_changed)
        .bind(megapixel_steps.value)
        .bind(budget.is_changed)
        .bind(budget_megapixel_steps)
        .bind(budget.is_changed)
        .bind(budget_money_micros)
        .bind(id.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(|error| taken(error, edit.name.as_deref().unwrap_or_default()))?;
        let has_changed = edited.rows_affected() > 0;
        if has_changed {
            audit::insert(&mut transaction, entry).await?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(has_changed)
    }

    /// Deletes a project that no key belongs to, other than revoked ones, which leave it.
    pub(in crate::auth) async fn delete_project(
        &self,
        id: ProjectId,
        entry: &NewEntry<'_>,
    ) -> Result<(), ProjectError> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::from)?;
        let keys: u32 =
            sqlx::query_scalar("SELECT count(*) FROM api_keys WHERE project_id = ? AND revoked_at_ms IS NULL")
                .bind(id.to_string())
                .fetch_one(&mut *transaction)
                .await
                .map_err(StoreError::from)?;
        if keys > 0 {
            return Err(ProjectError::InUse { keys });
        }
        for statement in [
            "UPDATE api_keys SET project_id = NULL, version = version + 1 WHERE project_id = ?",
            "DELETE FROM projects WHERE id = ?",
        ] {
            let query = sqlx::query(statement).bind(id.to_string());
            query.execute(&mut *transaction).await.map_err(StoreError::from)?;
        }
        audit::insert(&mut transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

/// The error of a statement that sets a name.
fn taken(error: sqlx::Error, name: &str) -> ProjectError {
    match &error {
        sqlx::Error::Database(cause) if cause.is_unique_violation() => ProjectError::NameTaken(name.to_owned()),
        _ => StoreError::from(error).into(),
    }
}
