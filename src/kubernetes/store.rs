//! Every statement on the tables `kubernetes_namespaces`, `kubernetes_grants` and `kubernetes_removals`.

mod removals;
mod rows;

use sqlx::SqliteConnection;
use time::OffsetDateTime;
use uuid::Uuid;

pub use removals::Removal;
use removals::{NewRemoval, close, insert_removal};
pub(super) use rows::Grant;
use rows::{read_grant, read_namespace, read_removal};

use super::cluster::Kind;
use super::error::{KubernetesError, Result};
use super::namespace::{Namespace, Standing};
use super::rights::Holder;
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::store::{ChangeMark, Store, StoreError, to_milliseconds};

/// Removals read in one query.
const REMOVALS_AT_ONCE_MAX: u32 = 100;

/// The statements on namespaces, grants and removals.
#[derive(Debug, Clone)]
pub(super) struct KubernetesStore(Store);

macro_rules! select_namespaces {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, created_at_ms, is_open, missing, problem, checked_at_ms, cluster_uid \
             FROM kubernetes_namespaces ",
            $rest
        )
    };
}

/// The columns of a grant, with its namespace's name in a subquery, so that RETURNING can have it too: grant and name are
/// then of the same time.
macro_rules! grant_columns {
    () => {
        "id, key_id, key_prefix, namespace_id, tokens_end_at_ms, \
         (SELECT name FROM kubernetes_namespaces WHERE kubernetes_namespaces.id = namespace_id) AS namespace_name"
    };
}

impl KubernetesStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(super) fn change_mark(&self) -> Option<ChangeMark> {
        self.0.change_mark()
    }

    /// All namespaces, by name.
    pub(super) async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let rows = sqlx::query(select_namespaces!("ORDER BY name")).fetch_all(self.0.pool()).await?;
        rows.iter().map(read_namespace).collect()
    }

    pub(super) async fn namespace(&self, id: NamespaceId) -> Result<Option<Namespace>> {
        let row = sqlx::query(select_namespaces!("WHERE id = ?"));
        let row = row.bind(id.to_string()).fetch_optional(self.0.pool()).await?;
        row.as_ref().map(read_namespace).transpose()
    }

    /// Those of `ids` without a namespace.
    pub(super) async fn unknown(&self, ids: &[NamespaceId]) -> Result<Vec<NamespaceId>> {
        let known = self.namespaces().await?;
        let is_known = |id: &NamespaceId| known.iter().any(|namespace| namespace.id == *id);
        Ok(ids.iter().copied().filter(|id| !is_known(id)).collect())
    }

    pub(super) async fn count_namespaces(&self) -> Result<u32> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM kubernetes_namespaces").fetch_one(self.0.pool()).await?)
    }

    pub(super) async fn insert_namespace(
        &self,
        id: NamespaceId,
        name: &NamespaceName,
        now: OffsetDateTime,
    ) -> Result<()> {
        let insert = sqlx::query("INSERT INTO kubernetes_namespaces (id, name, created_at_ms) VALUES (?, ?, ?)")
            .bind(id.to_string())
            .bind(name.as_str())
            .bind(to_milliseconds(now));
        insert.execute(self.0.pool()).await.map_err(name_taken)?;
        Ok(())
    }

    /// Records the status of a namespace. Returns `false` if it has been renamed or removed.
    pub(super) async fn note_standing(
        &self,
        namespace: &Namespace,
        standing: &Standing,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let missing: Vec<&str> = standing.missing.iter().map(|missing| missing.as_str()).collect();
        let noted = sqlx::query(
            "UPDATE kubernetes_namespaces SET is_open = ?, missing = ?, problem = ?, checked_at_ms = ? \
             WHERE id = ? AND name = ?",
        )
        .bind(standing.is_open)
        .bind(serde_json::Value::from(missing).to_string())
        .bind(&standing.problem)
        .bind(to_milliseconds(now))
        .bind(namespace.id.to_string())
        .bind(namespace.name.as_str())
        .execute(self.0.pool())
        .await?;
        Ok(noted.rows_affected() > 0)
    }

    /// Records the uid of a namespace unless one is recorded, and returns the recorded one.
    pub(super) async fn note_uid(&self, namespace: &Namespace, uid: &str) -> Result<Option<String>> {
        let noted = sqlx::query_scalar(
            "UPDATE kubernetes_namespaces SET cluster_uid = coalesce(cluster_uid, ?) WHERE id = ? AND name = ? \
             RETURNING cluster_uid",
        );
        let noted = noted.bind(uid).bind(namespace.id.to_string()).bind(namespace.name.as_str());
        Ok(noted.fetch_optional(self.0.pool()).await?)
    }

    /// Schedules the removal of what the worker opened under this name, unless a namespace has the name.
    pub(super) async fn close_unless_entered(&self, name: &NamespaceName, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let entered = sqlx::query_scalar("SELECT count(*) FROM kubernetes_namespaces WHERE name = ?");
        let entered: u32 = entered.bind(name.as_str()).fetch_one(&mut *transaction).await?;
        if entered == 0 {
            close(&mut transaction, name, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Points the id of `namespace` to another namespace of the cluster. Withdraws the grants of the old one, and closes it if
    /// `closes_it`. Returns `false` if there is no such id.
    pub(super) async fn rename_namespace(
        &self,
        namespace: &Namespace,
        name: &NamespaceName,
        closes_it: bool,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        leave(&mut transaction, namespace, closes_it, now).await?;
        let renamed = sqlx::query(
            "UPDATE kubernetes_namespaces SET name = ?, is_open = 0, missing = '[]', problem = NULL, checked_at_ms = NULL, \
             cluster_uid = NULL WHERE id = ?",
        );
        let renamed = renamed.bind(name.as_str()).bind(namespace.id.to_string()).execute(&mut *transaction).await;
        let has_changed = renamed.map_err(name_taken)?.rows_affected() > 0;
        transaction.commit().await?;
        Ok(has_changed)
    }

    /// Removes a namespace. Withdraws its grants, and closes it if `closes_it`. Returns `false` if there is no such id.
    pub(super) async fn delete_namespace(
        &self,
        namespace: &Namespace,
        closes_it: bool,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        leave(&mut transaction, namespace, closes_it, now).await?;
        let deleted = sqlx::query("DELETE FROM kubernetes_namespaces WHERE id = ?");
        let deleted = deleted.bind(namespace.id.to_string()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// The grant of a key's value for a namespace, created if there is none, with tokens until `end`. It has the namespace's
    /// name at that time: a later rename finds the grant and withdraws it.
    pub(super) async fn take_grant(
        &self,
        holder: &Holder,
        namespace: NamespaceId,
        end: OffsetDateTime,
    ) -> Result<Grant> {
        // Outside a transaction, the row would be returned before it is committed, and a failed COMMIT would go unnoticed.
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(concat!(
            "INSERT INTO kubernetes_grants (id, key_id, key_prefix, namespace_id, tokens_end_at_ms) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (key_prefix, namespace_id) \
             DO UPDATE SET tokens_end_at_ms = excluded.tokens_end_at_ms RETURNING ",
            grant_columns!()
        ))
        .bind(Uuid::now_v7().to_string())
        .bind(holder.key.to_string())
        .bind(&holder.prefix)
        .bind(namespace.to_string())
        .bind(to_milliseconds(end))
        .fetch_one(&mut *transaction)
        .await
        // The namespace was removed meanwhile.
        .map_err(|error| match &error {
            sqlx::Error::Database(cause) if cause.is_foreign_key_violation() => KubernetesError::NamespaceNotFound,
            _ => error.into(),
        })?;
        transaction.commit().await?;
        read_grant(&row)
    }

    pub(super) async fn grants(&self) -> Result<Vec<Grant>> {
        let select = concat!("SELECT ", grant_columns!(), " FROM kubernetes_grants ORDER BY id");
        let rows = sqlx::query(select).fetch_all(self.0.pool()).await?;
        rows.iter().map(read_grant).collect()
    }

    pub(super) async fn has_grant(&self, grant: &Grant) -> Result<bool> {
        let count: u32 = sqlx::query_scalar("SELECT count(*) FROM kubernetes_grants WHERE id = ?")
            .bind(grant.id.to_string())
            .fetch_one(self.0.pool())
            .await?;
        Ok(count > 0)
    }

    /// Withdraws a grant and schedules the removal of its Secret, even if the grant is gone: a Secret may have been created
    /// since.
    pub(super) async fn withdraw(&self, grant: &Grant, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        withdraw(&mut transaction, grant, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Withdraws a grant whose tokens have all expired, unless it has new ones since it was read.
    pub(super) async fn withdraw_unused(&self, grant: &Grant, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let unused = sqlx::query("DELETE FROM kubernetes_grants WHERE id = ? AND tokens_end_at_ms = ?");
        let unused = unused
            .bind(grant.id.to_string())
            .bind(to_milliseconds(grant.tokens_end_at))
            .execute(&mut *transaction)
            .await?;
        if unused.rows_affected() > 0 {
            withdraw(&mut transaction, grant, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Pending removals: Secrets first, then those with the fewest attempts, so that failing ones do not block the rest.
    pub(super) async fn removals(&self) -> Result<Vec<Removal>> {
        let rows = sqlx::query(
            "SELECT id, kind, name, namespace, key_id, key_prefix, since_at_ms, tokens_end_at_ms, attempts, last_error \
             FROM kubernetes_removals ORDER BY kind <> 'secret', attempts, id LIMIT ?",
        );
        let rows = rows.bind(REMOVALS_AT_ONCE_MAX).fetch_all(self.0.pool()).await?;
        rows.iter().map(read_removal).collect()
    }

    pub(super) async fn finish_removal(&self, id: i64) -> Result<()> {
        sqlx::query("DELETE FROM kubernetes_removals WHERE id = ?").bind(id).execute(self.0.pool()).await?;
        Ok(())
    }

    pub(super) async fn note_failed_removal(&self, id: i64, error: &str) -> Result<()> {
        let update = "UPDATE kubernetes_removals SET attempts = attempts + 1, last_error = ? WHERE id = ?";
        sqlx::query(update).bind(error).bind(id).execute(self.0.pool()).await?;
        Ok(())
    }
}

/// Withdraws the grants of a namespace, and closes it if `closes_it`.
async fn leave(
    connection: &mut SqliteConnection,
    namespace: &Namespace,
    closes_it: bool,
    now: OffsetDateTime,
) -> Result<()> {
    withdraw_all(connection, namespace.id, now).await?;
    if !closes_it {
        return Ok(());
    }
    // The current name: it may have been renamed since it was read.
    let name = sqlx::query_scalar("SELECT name FROM kubernetes_namespaces WHERE id = ?");
    let name: Option<String> = name.bind(namespace.id.to_string()).fetch_optional(&mut *connection).await?;
    let name = name.and_then(|name| name.parse().ok());
    close(connection, name.as_ref().unwrap_or(&namespace.name), now).await
}

async fn withdraw(connection: &mut SqliteConnection, grant: &Grant, now: OffsetDateTime) -> Result<()> {
    let delete = sqlx::query("DELETE FROM kubernetes_grants WHERE id = ?");
    delete.bind(grant.id.to_string()).execute(&mut *connection).await?;
    let removal = NewRemoval {
        kind: Kind::Secret,
        name: &grant.secret(),
        namespace: grant.namespace_name.as_str(),
        holder: Some(&grant.holder),
        tokens_end_at: Some(grant.tokens_end_at),
    };
    insert_removal(connection, &removal, now).await
}

async fn withdraw_all(connection: &mut SqliteConnection, namespace: NamespaceId, now: OffsetDateTime) -> Result<()> {
    let rows = sqlx::query(concat!("SELECT ", grant_columns!(), " FROM kubernetes_grants WHERE namespace_id = ?"));
    for row in rows.bind(namespace.to_string()).fetch_all(&mut *connection).await? {
        withdraw(connection, &read_grant(&row)?, now).await?;
    }
    Ok(())
}

/// An error of a statement that sets a name, which is unique.
fn name_taken(error: sqlx::Error) -> KubernetesError {
    match &error {
        sqlx::Error::Database(cause) if cause.is_unique_violation() => KubernetesError::NameTaken,
        _ => error.into(),
    }
}

impl From<sqlx::Error> for KubernetesError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(StoreError::from(error))
    }
}

#[cfg(test)]
mod tests;
