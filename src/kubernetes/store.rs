//! The tables `kubernetes_namespaces`, `kubernetes_grants` and `kubernetes_removals`: every statement that touches them.

mod rows;

use sqlx::SqliteConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use rows::{read_grant, read_namespace, read_removal};

use super::cluster::Kind;
use super::manifest::{BINDING, account_of};
use super::namespace::{Namespace, Standing};
use super::{Holder, KubernetesError};
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::store::{ChangeMark, Store, StoreError};

/// Removals that are read at one time.
const REMOVALS_AT_ONCE_MAX: u32 = 100;

/// What tokens of one value of a key, for one namespace, hang on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: Uuid,
    pub(super) holder: Holder,
    pub(super) namespace: NamespaceId,
    /// When the last of its tokens dies by itself.
    pub(super) tokens_end_at: OffsetDateTime,
}

impl Grant {
    /// The Secret's name in the cluster.
    pub(super) fn secret(&self) -> String {
        format!("key-{}", self.id.hyphenated())
    }
}

/// What has to go from the cluster, and has not been confirmed to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub(super) id: i64,
    pub(super) kind: Kind,
    /// The object's name.
    pub name: String,
    /// The namespace that it was for.
    pub namespace: String,
    /// Whose tokens die with it. `None` where it was everyone's.
    pub holder: Option<Holder>,
    /// Since when it has to go.
    pub since: OffsetDateTime,
    /// When the tokens that hang on it die by themselves.
    pub tokens_end_at: Option<OffsetDateTime>,
    /// How often the cluster was asked in vain.
    pub attempts: u32,
    /// What it said the last time.
    pub last_error: Option<String>,
}

/// The statements.
#[derive(Debug, Clone)]
pub(super) struct KubernetesStore(Store);

type Result<T> = std::result::Result<T, KubernetesError>;

macro_rules! select_namespaces {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, created_at_ms, is_open, missing, problem, checked_at_ms FROM kubernetes_namespaces ",
            $rest
        )
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

    /// Notes what a look at a namespace has found, unless it has another name by now.
    pub(super) async fn note_standing(
        &self,
        namespace: &Namespace,
        standing: &Standing,
        now: OffsetDateTime,
    ) -> Result<()> {
        let missing: Vec<&str> = standing.missing.iter().map(|missing| missing.as_str()).collect();
        sqlx::query(
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
            "UPDATE kubernetes_namespaces SET name = ?, is_open = 0, missing = '[]', problem = NULL, checked_at_ms = NULL \
             WHERE id = ?",
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

    /// The grant of a key's value for a namespace, made where there is none, with tokens until `end`.
    pub(super) async fn take_grant(
        &self,
        holder: &Holder,
        namespace: NamespaceId,
        end: OffsetDateTime,
    ) -> Result<Grant> {
        // Outside a transaction the row would be given out before it is committed, and a COMMIT that fails not told of.
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(
            "INSERT INTO kubernetes_grants (id, key_id, key_prefix, namespace_id, tokens_end_at_ms) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (key_prefix, namespace_id) \
             DO UPDATE SET tokens_end_at_ms = excluded.tokens_end_at_ms \
             RETURNING id, key_id, key_prefix, namespace_id, tokens_end_at_ms",
        )
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
        let select = "SELECT id, key_id, key_prefix, namespace_id, tokens_end_at_ms FROM kubernetes_grants ORDER BY id";
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

    /// Removals that are left to do: first what tokens hang on, and what was tried the least, so that nothing that cannot
    /// be removed keeps the rest from it.
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

/// What there is for a namespace has to go: tokens for it, and what it was opened with, where the worker did that.
async fn leave(
    connection: &mut SqliteConnection,
    namespace: &Namespace,
    closes_it: bool,
    now: OffsetDateTime,
) -> Result<()> {
    withdraw_all(connection, namespace.id, now).await?;
    if closes_it { close(connection, &namespace.name, now).await } else { Ok(()) }
}

/// What a namespace was opened with has to go.
async fn close(connection: &mut SqliteConnection, name: &NamespaceName, now: OffsetDateTime) -> Result<()> {
    let namespace = name.as_str();
    for (kind, name) in [(Kind::ServiceAccount, account_of(name).as_str()), (Kind::RoleBinding, BINDING)] {
        let removal = NewRemoval { kind, name, namespace, holder: None, tokens_end_at: None };
        insert_removal(connection, &removal, now).await?;
    }
    Ok(())
}

struct NewRemoval<'a> {
    kind: Kind,
    name: &'a str,
    namespace: &'a str,
    holder: Option<&'a Holder>,
    tokens_end_at: Option<OffsetDateTime>,
}

/// Once is enough for one thing.
async fn insert_removal(connection: &mut SqliteConnection, new: &NewRemoval<'_>, now: OffsetDateTime) -> Result<()> {
    sqlx::query(
        "INSERT INTO kubernetes_removals (kind, name, namespace, key_id, key_prefix, since_at_ms, tokens_end_at_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(word_of(new.kind))
    .bind(new.name)
    .bind(new.namespace)
    .bind(new.holder.map(|holder| holder.key.to_string()))
    .bind(new.holder.map(|holder| holder.prefix.as_str()))
    .bind(to_milliseconds(now))
    .bind(new.tokens_end_at.map(to_milliseconds))
    .execute(connection)
    .await?;
    Ok(())
}

async fn withdraw(connection: &mut SqliteConnection, grant: &Grant, now: OffsetDateTime) -> Result<()> {
    let name = sqlx::query_scalar("SELECT name FROM kubernetes_namespaces WHERE id = ?");
    let name: Option<String> = name.bind(grant.namespace.to_string()).fetch_optional(&mut *connection).await?;
    let delete = sqlx::query("DELETE FROM kubernetes_grants WHERE id = ?");
    delete.bind(grant.id.to_string()).execute(&mut *connection).await?;
    let removal = NewRemoval {
        kind: Kind::Secret,
        name: &grant.secret(),
        namespace: name.as_deref().unwrap_or_default(),
        holder: Some(&grant.holder),
        tokens_end_at: Some(grant.tokens_end_at),
    };
    insert_removal(connection, &removal, now).await
}

async fn withdraw_all(connection: &mut SqliteConnection, namespace: NamespaceId, now: OffsetDateTime) -> Result<()> {
    let rows = sqlx::query(
        "SELECT id, key_id, key_prefix, namespace_id, tokens_end_at_ms FROM kubernetes_grants WHERE namespace_id = ?",
    );
    for row in rows.bind(namespace.to_string()).fetch_all(&mut *connection).await? {
        withdraw(connection, &read_grant(&row)?, now).await?;
    }
    Ok(())
}

fn word_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Secret => "secret",
        Kind::ServiceAccount => "service_account",
        Kind::RoleBinding => "role_binding",
    }
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
