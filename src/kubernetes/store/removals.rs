//! The table `kubernetes_removals`: objects to delete from the cluster, until it has confirmed their deletion.

use sqlx::SqliteConnection;
use time::OffsetDateTime;

use crate::domain::namespace::NamespaceName;
use crate::kubernetes::cluster::Kind;
use crate::kubernetes::error::Result;
use crate::kubernetes::manifest::{BINDING, account_of};
use crate::kubernetes::rights::Holder;
use crate::store::to_milliseconds;

/// An object to delete from the cluster, not yet confirmed as deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub(in crate::kubernetes) id: i64,
    pub(in crate::kubernetes) kind: Kind,
    /// The object's name.
    pub name: String,
    /// The namespace that it is for.
    pub namespace: String,
    /// The holder whose tokens it invalidates. `None` for an object of all holders.
    pub holder: Option<Holder>,
    /// When the removal was scheduled.
    pub since: OffsetDateTime,
    /// When the tokens bound to it expire.
    pub tokens_end_at: Option<OffsetDateTime>,
    /// Failed attempts.
    pub attempts: u32,
    /// Error of the last attempt.
    pub last_error: Option<String>,
}

/// Schedules the removal of the objects that open a namespace.
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

/// Schedules a removal, once per object.
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
