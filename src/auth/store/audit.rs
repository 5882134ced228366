//! Every statement on the table `audit_log`.

use serde_json::Value;
use sqlx::SqliteConnection;
use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::audit::{Actor, AuditAction, AuditEntry, AuditedKey, NewEntry};
use crate::auth::key::PublicId;
use crate::store::{Store, StoreError, from_milliseconds, to_milliseconds};

/// Entries between two trims: a trim walks the index.
const ENTRIES_PER_TRIM: i64 = 64;

/// Writes an entry in the transaction of the change that it records. Every [`ENTRIES_PER_TRIM`] entries, deletes the oldest
/// beyond the limit of the actor's kind.
pub(in crate::auth) async fn insert(connection: &mut SqliteConnection, entry: &NewEntry<'_>) -> Result<(), KeyFailure> {
    let inserted = sqlx::query(
        "INSERT INTO audit_log (at_ms, actor, session_id, address, action, key_id, key_prefix, detail) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(to_milliseconds(entry.at))
    .bind(entry.actor.as_str())
    .bind(entry.actor.session().map(|id| id.to_string()))
    .bind(entry.actor.address().map(|address| address.to_string()))
    .bind(entry.action.as_str())
    .bind(entry.key.map(|key| key.id.to_string()))
    .bind(entry.key.map(|key| key.prefix.as_str().to_owned()))
    .bind(entry.detail.to_string())
    .execute(&mut *connection)
    .await
    .map_err(StoreError::from)?;
    if inserted.last_insert_rowid() % ENTRIES_PER_TRIM == 0 {
        trim(connection, entry.actor.as_str(), entry.actor.entries_max()).await?;
    }
    Ok(())
}

/// Writes an entry, about no key, in the transaction of another module's change.
///
/// # Errors
/// When the database fails.
pub async fn audit_in(
    connection: &mut SqliteConnection,
    (at, actor): (OffsetDateTime, &Actor),
    action: AuditAction,
    detail: Value,
) -> Result<(), KeyFailure> {
    insert(connection, &NewEntry { at, actor, action, key: None, detail }).await
}

/// Writes an entry about a key in the transaction of another module's change.
///
/// # Errors
/// When the database fails.
pub async fn audit_key_in(
    connection: &mut SqliteConnection,
    (at, actor): (OffsetDateTime, &Actor),
    action: AuditAction,
    key: AuditedKey,
    detail: Value,
) -> Result<(), KeyFailure> {
    insert(connection, &NewEntry { at, actor, action, key: Some(key), detail }).await
}

async fn trim(connection: &mut SqliteConnection, actor: &str, kept: u32) -> Result<(), KeyFailure> {
    sqlx::query(
        "DELETE FROM audit_log WHERE actor = ?1 AND id <= \
             (SELECT id FROM audit_log WHERE actor = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )
    .bind(actor)
    .bind(kept)
    .execute(connection)
    .await
    .map_err(StoreError::from)?;
    Ok(())
}

/// The columns as stored.
#[derive(sqlx::FromRow)]
struct StoredEntry {
    id: i64,
    at_ms: i64,
    actor: String,
    session_id: Option<String>,
    address: Option<String>,
    action: String,
    key_id: Option<String>,
    key_prefix: Option<String>,
    detail: String,
}

impl StoredEntry {
    /// `None` for a row that this program cannot read.
    fn read(self) -> Option<AuditEntry> {
        let key = match (self.key_id, self.key_prefix) {
            (Some(id), Some(prefix)) => {
                Some(AuditedKey { id: id.parse().ok()?, prefix: PublicId::from_stored(&prefix).ok()? })
            }
            _ => None,
        };
        Some(AuditEntry {
            id: self.id,
            at: from_milliseconds(self.at_ms)?,
            actor: self.actor,
            session: self.session_id,
            address: self.address,
            action: self.action.parse().ok()?,
            key,
            detail: serde_json::from_str(&self.detail).ok()?,
        })
    }
}

/// At most `limit` entries before `before`, the newest first, and where the next page begins. An entry that cannot be read
/// is skipped, so that it does not hide the others.
pub(in crate::auth) async fn page(
    store: &Store,
    before: Option<i64>,
    limit: u32,
) -> Result<(Vec<AuditEntry>, Option<i64>), KeyFailure> {
    let mut rows: Vec<StoredEntry> = sqlx::query_as(
        "SELECT id, at_ms, actor, session_id, address, action, key_id, key_prefix, detail FROM audit_log \
         WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
    )
    .bind(before)
    .bind(limit + 1)
    .fetch_all(store.pool())
    .await
    .map_err(StoreError::from)?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().map(|row| row.id).filter(|_| has_more);
    let read = |row: StoredEntry| {
        let id = row.id;
        let entry = row.read();
        if entry.is_none() {
            tracing::warn!(id, "skipped an entry of the audit log that cannot be read");
        }
        entry
    };
    Ok((rows.into_iter().filter_map(read).collect(), next))
}

/// Writes an entry in a transaction of its own.
pub(in crate::auth) async fn insert_alone(store: &Store, entry: &NewEntry<'_>) -> Result<(), KeyFailure> {
    let mut transaction = store.pool().begin().await.map_err(StoreError::from)?;
    insert(&mut transaction, entry).await?;
    transaction.commit().await.map_err(StoreError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;
    use crate::auth::audit::{Actor, AuditAction};

    #[tokio::test]
    async fn each_kind_of_actor_evicts_only_its_own_entries() {
        let store = Store::open_in_memory().await.expect("opens");
        let entry = |actor| NewEntry {
            at: OffsetDateTime::UNIX_EPOCH,
            actor,
            action: AuditAction::PasswordSet,
            key: None,
            detail: json!({}),
        };
        let stranger = Actor::Stranger { address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let mut connection = store.pool().acquire().await.expect("a connection");
        insert(&mut connection, &entry(&Actor::Worker)).await.expect("written");
        for _ in 0..5 {
            insert(&mut connection, &entry(&stranger)).await.expect("written");
        }
        trim(&mut connection, "stranger", 2).await.expect("trimmed");
        drop(connection);
        let (entries, next) = page(&store, None, 10).await.expect("read");
        assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [6, 5, 1]);
        assert_eq!(next, None);
        let mut connection = store.pool().acquire().await.expect("a connection");
        for _ in 0..4 {
            insert(&mut connection, &entry(&Actor::CommandLine)).await.expect("written");
        }
        trim(&mut connection, "command_line", 3).await.expect("trimmed");
        drop(connection);
        let (entries, next) = page(&store, None, 3).await.expect("read");
        assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [10, 9, 8]);
        assert_eq!(next, Some(8));
        let (entries, _) = page(&store, next, 3).await.expect("read");
        assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [6, 5, 1]);
    }
}
