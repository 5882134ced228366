//! The table `kubernetes_removals`: what has to go from the cluster, until it has confirmed that it is gone.

use sqlx::SqliteConnection;
use time::OffsetDateTime;

use super::rows::read_removal;
use super::{KubernetesStore, Result, to_milliseconds};
use crate::domain::namespace::NamespaceName;
use crate::kubernetes::Holder;
use crate::kubernetes::cluster::Kind;
use crate::kubernetes::manifest::{BINDING, account_of};

/// Removals that are read at one time.
const REMOVALS_AT_ONCE_MAX: u32 = 100;

/// What has to go from the cluster, and has not been confirmed to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub(in crate::kubernetes) id: i64,
    pub(in crate::kubernetes) kind: Kind,
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

impl KubernetesStore {
    /// Removals that are left to do: first what tokens hang on, and what was tried the least, so that nothing that cannot
    /// be removed keeps the rest from it.
    pub(in crate::kubernetes) async fn removals(&self) -> Result<Vec<Removal>> {
        let rows = sqlx::query(
            "SELECT id, kind, name, namespace, key_id, key_prefix, since_at_ms, tokens_end_at_ms, attempts, last_error \
             FROM kubernetes_removals ORDER BY kind <> 'secret', attempts, id LIMIT ?",
        );
        let rows = rows.bind(REMOVALS_AT_ONCE_MAX).fetch_all(self.0.pool()).await?;
        rows.iter().map(read_removal).collect()
    }

    pub(in crate::kubernetes) async fn finish_removal(&self, id: i64) -> Result<()> {
        sqlx::query("DELETE FROM kubernetes_removals WHERE id = ?").bind(id).execute(self.0.pool()).await?;
        Ok(())
    }

    pub(in crate::kubernetes) async fn note_failed_removal(&self, id: i64, error: &str) -> Result<()> {
        let update = "UPDATE kubernetes_removals SET attempts = attempts + 1, last_error = ? WHERE id = ?";
        sqlx::query(update).bind(error).bind(id).execute(self.0.pool()).await?;
        Ok(())
    }
}

/// What a namespace was opened with has to go.
pub(super) async fn close(connection: &mut SqliteConnection, name: &NamespaceName, now: OffsetDateTime) -> Result<()> {
    let namespace = name.as_str();
    for (kind, name) in [(Kind::ServiceAccount, account_of(name).as_str()), (Kind::RoleBinding, BINDING)] {
        let removal = NewRemoval { kind, name, namespace, holder: None, tokens_end_at: None };
        insert_removal(connection, &removal, now).await?;
    }
    Ok(())
}

pub(super) struct NewRemoval<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) holder: Option<&'a Holder>,
    pub(super) tokens_end_at: Option<OffsetDateTime>,
}

/// Once is enough for one thing.
pub(super) async fn insert_removal(
    connection: &mut SqliteConnection,
    new: &NewRemoval<'_>,
    now: OffsetDateTime,
) -> Result<()> {
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

pub(super) fn word_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Secret => "secret",
        Kind::ServiceAccount => "service_account",
        Kind::RoleBinding => "role_binding",
    }
}
