//! Every statement on the tables `admin_password` and `admin_sessions`.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::audit;
use crate::auth::KeyFailure;
use crate::auth::admin::{Session, SessionHash};
use crate::auth::audit::NewEntry;
use crate::auth::hash::HashedSecret;
use crate::auth::throttle::network;
use crate::domain::ids::SessionId;
use crate::store::{Store, StoreError, from_milliseconds, to_milliseconds};

/// The statements on the password and sessions.
#[derive(Debug, Clone)]
pub(in crate::auth) struct AdminStore(Store);

/// A session to be stored.
#[derive(Debug)]
pub(in crate::auth) struct NewSessionRow {
    pub(in crate::auth) hash: SessionHash,
    pub(in crate::auth) id: SessionId,
    pub(in crate::auth) address: String,
    pub(in crate::auth) created_at: OffsetDateTime,
}

/// What identifies a session.
#[derive(Debug, Clone, Copy)]
pub(in crate::auth) enum SessionRef<'a> {
    Token(&'a SessionHash),
    Id(SessionId),
}

/// Sessions created before `created_after` or not used since `used_after` have ended.
#[derive(Debug, Clone, Copy)]
pub(in crate::auth) struct Lifetimes {
    pub(in crate::auth) created_after: OffsetDateTime,
    pub(in crate::auth) used_after: OffsetDateTime,
}

/// A session's id, creation and last use, both in milliseconds.
type SessionRow = (String, i64, i64);

fn session((id, created_at, last_used_at): SessionRow) -> Option<Session> {
    Some(Session {
        id: id.parse().ok()?,
        created_at: from_milliseconds(created_at)?,
        last_used_at: from_milliseconds(last_used_at)?,
    })
}

impl AdminStore {
    pub(in crate::auth) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(in crate::auth) fn store(&self) -> &Store {
        &self.0
    }

    pub(in crate::auth) async fn password_hash(&self) -> Result<Option<HashedSecret>, KeyFailure> {
        let hash: Option<String> = sqlx::query_scalar("SELECT password_hash FROM admin_password")
            .fetch_optional(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        Ok(hash.map(HashedSecret::from_stored))
    }

    /// Sets the password and ends all sessions.
    pub(in crate::auth) async fn set_password(
        &self,
        hash: &HashedSecret,
        entry: &NewEntry<'_>,
    ) -> Result<(), KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        sqlx::query(
            "INSERT INTO admin_password (only_row, password_hash, set_at_ms) VALUES (1, ?, ?) \
             ON CONFLICT DO UPDATE SET password_hash = excluded.password_hash, set_at_ms = excluded.set_at_ms",
        )
        .bind(hash.as_str())
        .bind(to_milliseconds(entry.at))
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        sqlx::query("DELETE FROM admin_sessions").execute(&mut *transaction).await.map_err(StoreError::from)?;
        audit::insert(&mut transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Stores a session, unless the password has changed since `password` was read (`false`). Deletes ended sessions, and
    /// the oldest beyond `sessions_max`.
    pub(in crate::auth) async fn insert_session(
        &self,
        row: &NewSessionRow,
        (password, lifetimes): (&HashedSecret, Lifetimes),
        sessions_max: u32,
        entry: &NewEntry<'_>,
    ) -> Result<bool, KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let inserted = sqlx::query(
            "INSERT INTO admin_sessions (token_hash, id, address, created_at_ms, last_used_at_ms) \
             SELECT ?1, ?2, ?3, ?4, ?4 FROM admin_password WHERE password_hash = ?5",
        )
        .bind(row.hash.as_bytes())
        .bind(row.id.to_string())
        .bind(&row.address)
        .bind(to_milliseconds(row.created_at))
        .bind(password.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "DELETE FROM admin_sessions WHERE created_at_ms <= ?1 OR last_used_at_ms <= ?2 \
                 OR id IN (SELECT id FROM admin_sessions ORDER BY id = ?4 DESC, id DESC LIMIT -1 OFFSET ?3)",
        )
        .bind(to_milliseconds(lifetimes.created_after))
        .bind(to_milliseconds(lifetimes.used_after))
        .bind(sessions_max)
        // The new session stays, even if the others were created by a clock that was ahead.
        .bind(row.id.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        audit::insert(&mut transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(true)
    }

    /// A session that has not ended.
    pub(in crate::auth) async fn session(
        &self,
        by: SessionRef<'_>,
        lifetimes: Lifetimes,
    ) -> Result<Option<Session>, KeyFailure> {
        let (hash, id) = match by {
            SessionRef::Token(hash) => (Some(hash.as_bytes()), None),
            SessionRef::Id(id) => (None, Some(id.to_string())),
        };
        let row: Option<SessionRow> = sqlx::query_as(
            "SELECT id, created_at_ms, last_used_at_ms FROM admin_sessions \
             WHERE (token_hash = ?1 OR id = ?2) AND created_at_ms > ?3 AND last_used_at_ms > ?4",
        )
        .bind(hash)
        .bind(id)
        .bind(to_milliseconds(lifetimes.created_after))
        .bind(to_milliseconds(lifetimes.used_after))
        .fetch_optional(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(row.and_then(session))
    }

    /// Whether an administrator signed in from this network recently: ended sessions are kept until the next sign-in. The
    /// network counts, since the part of an IPv6 address that a subscriber chooses changes daily.
    pub(in crate::auth) async fn has_session_from(&self, address: IpAddr) -> Result<bool, KeyFailure> {
        let known: Vec<String> = sqlx::query_scalar("SELECT DISTINCT address FROM admin_sessions")
            .fetch_all(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        let here = network(address);
        Ok(known.iter().any(|known| known.parse().is_ok_and(|known| network(known) == here)))
    }

    /// Sets a session's creation and last use to `now` where they are later.
    pub(in crate::auth) async fn pull_back(&self, id: SessionId, now: OffsetDateTime) -> Result<(), KeyFailure> {
        sqlx::query(
            "UPDATE admin_sessions SET created_at_ms = min(created_at_ms, ?1), last_used_at_ms = min(last_used_at_ms, ?1) \
             WHERE id = ?2",
        )
        .bind(to_milliseconds(now))
        .bind(id.to_string())
        .execute(self.0.pool())
        .await
        .map_err(StoreError::from)?;
        Ok(())
    }

    pub(in crate::auth) async fn note_use(&self, id: SessionId, now: OffsetDateTime) -> Result<(), KeyFailure> {
        sqlx::query("UPDATE admin_sessions SET last_used_at_ms = max(last_used_at_ms, ?) WHERE id = ?")
            .bind(to_milliseconds(now))
            .bind(id.to_string())
            .execute(self.0.pool())
            .await
            .map_err(StoreError::from)?;
        Ok(())
    }

    pub(in crate::auth) async fn delete_session(&self, id: SessionId, entry: &NewEntry<'_>) -> Result<(), KeyFailure> {
        let mut transaction = self.0.pool().begin().await.map_err(StoreError::from)?;
        let deleted = sqlx::query("DELETE FROM admin_sessions WHERE id = ?")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
        if deleted.rows_affected() > 0 {
            audit::insert(&mut transaction, entry).await?;
        }
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}
