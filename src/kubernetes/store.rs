//! The tables `kubernetes_namespaces`, `kubernetes_grants` and `kubernetes_removals`: every statement that touches them.

mod removals;
mod rows;

use sqlx::SqliteConnection;
use time::OffsetDateTime;
use uuid::Uuid;

pub use removals::Removal;
use removals::{NewRemoval, close, insert_removal};
use rows::{read_grant, read_namespace};

use super::cluster::Kind;
use super::namespace::{Namespace, Standing};
use super::{Holder, KubernetesError};
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::store::{ChangeMark, Store, StoreError};

/// What tokens of one value of a key, for one namespace, hang on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: Uuid,
    pub(super) holder: Holder,
    pub(super) namespace: NamespaceId,
    /// What that namespace was called when the grant was read.
    pub(super) namespace_name: NamespaceName,
    /// When the last of its tokens dies by itself.
    pub(super) tokens_end_at: OffsetDateTime,
}

impl Grant {
    /// The Secret's name in the cluster.
    pub(super) fn secret(&self) -> String {
        format!("key-{}", self.id.hyphenated())
    }
}

/// The statements.
#[derive(Debug, Clone)]
pub(super) struct KubernetesStore(Store);

type Result<T> = std::result::Result<T, KubernetesError>;

macro_rules! select_namespaces {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, created_at_ms, is_open, missing, problem, checked_at_ms, cluster_uid \
             FROM kubernetes_namespaces ",
            $rest
        )
    };
}

/// The columns of a grant, with what its namespace is called. As a subquery, so that it can stand behind RETURNING as well:
/// grant and name are then of the same moment.
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

    /// Those of `ids` that stand for no namespace.
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

    /// Notes what a look at a namespace has found, unless it has another name by now: then `false`.
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

    /// Notes which object of the cluster a namespace is, unless that is known already. What is noted then.
    pub(super) async fn note_uid(&self, namespace: &Namespace, uid: &str) -> Result<Option<String>> {
        let noted = sqlx::query_scalar(
            "UPDATE kubernetes_namespaces SET cluster_uid = coalesce(cluster_uid, ?) WHERE id = ? AND name = ? \
             RETURNING cluster_uid",
        );
        let noted = noted.bind(uid).bind(namespace.id.to_string()).bind(namespace.name.as_str());
        Ok(noted.fetch_optional(self.0.pool()).await?)
    }

    /// What the worker has opened by this name has to go, unless a namespace here is called so.
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

    /// Has the id of `namespace` stand for another namespace of the cluster. Tokens for the old one have to die, and so has
    /// what it was opened with, where the worker did that. `false`: no such id.
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

    /// Forgets a namespace. Tokens for it have to die, and so has what it was opened with, where the worker did that.
    /// `false`: no such id.
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

    /// The grant of a key's value for a namespace, made where there is none, with tokens until `end`. It says what the
    /// namespace is called at that moment: who renames it later finds the grant, and withdraws it.
    pub(super) async fn take_grant(
        &self,
        holder: &Holder,
        namespace: NamespaceId,
        end: OffsetDateTime,
    ) -> Result<Grant> {
        // Outside a transaction the row would be given out before it is committed, and a COMMIT that fails not told of.
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
        // The namespace has been deleted meanwhile.
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

    /// Takes a grant back: its Secret has to go. Also where the grant is not there any more: a Secret may have been made
    /// since it went.
    pub(super) async fn withdraw(&self, grant: &Grant, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        withdraw(&mut transaction, grant, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Takes a grant back whose tokens are all dead, unless there are new ones since it was read.
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
}

/// What there is for a namespace has to go: tokens for it, and what it was opened with, where the worker did that.
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
    // As it is called now: it may have been renamed since it was read.
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

/// An error of a statement that sets a name, which no two namespaces share.
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

fn to_milliseconds(moment: OffsetDateTime) -> i64 {
    (moment.unix_timestamp_nanos() / 1_000_000) as i64
}

#[cfg(test)]
mod tests;
