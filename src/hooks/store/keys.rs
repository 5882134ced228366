//! All statements on the table `webhook_keys`: a key's defaults, and what its secrets follow from.

use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use time::OffsetDateTime;

use super::HookStore;
use crate::auth::{Actor, AuditAction, AuditedKey, Change, audit_key_in};
use crate::domain::ids::KeyId;
use crate::domain::webhook::WebhookEvents;
use crate::hooks::KeyWebhook;
use crate::hooks::error::WebhookError;
use crate::hooks::secret::{Salt, Tag};
use crate::store::{from_milliseconds, to_milliseconds};

/// A change of a key's defaults.
pub(in crate::hooks) struct KeyChange<'a> {
    pub(in crate::hooks) key: AuditedKey,
    pub(in crate::hooks) url: Change<&'a str>,
    pub(in crate::hooks) events: Option<&'a WebhookEvents>,
    /// Details for the audit log.
    pub(in crate::hooks) detail: Value,
    pub(in crate::hooks) at: OffsetDateTime,
}

/// A new secret of a key.
pub(in crate::hooks) struct NewKeySecret {
    pub(in crate::hooks) key: AuditedKey,
    pub(in crate::hooks) salt: Salt,
    pub(in crate::hooks) tag: Tag,
    /// Until when the secret before signs as well.
    pub(in crate::hooks) previous_until: Option<OffsetDateTime>,
    /// Details for the audit log.
    pub(in crate::hooks) detail: Value,
    pub(in crate::hooks) at: OffsetDateTime,
}

/// What a secret follows from.
pub(in crate::hooks) struct StoredSecret {
    pub(in crate::hooks) salt: Salt,
    pub(in crate::hooks) tag: Tag,
}

impl HookStore {
    /// A key's webhook; the default one if nothing is stored.
    pub(in crate::hooks) async fn of_key(&self, key: KeyId) -> Result<KeyWebhook, WebhookError> {
        let row = sqlx::query(
            "SELECT url, events, gone_at_ms, secret_made_at_ms, previous_until_ms FROM webhook_keys WHERE key_id = ?",
        );
        let row = row.bind(key.to_string()).fetch_optional(self.0.pool()).await?;
        row.as_ref().map_or_else(|| Ok(KeyWebhook::default()), read)
    }

    /// Stores a change of a key's defaults. Setting a URL forgets that the receiver was gone.
    pub(in crate::hooks) async fn change(&self, change: &KeyChange<'_>, by: &Actor) -> Result<(), WebhookError> {
        let KeyChange { key, url, events, detail, at } = change;
        let (is_url_changed, url) = match url {
            Change::Keep => (false, None),
            Change::Remove => (true, None),
            Change::Set(url) => (true, Some(*url)),
        };
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        add_row(&mut transaction, key.id).await?;
        sqlx::query(
            "UPDATE webhook_keys SET url = iif(?1, ?2, url), gone_at_ms = iif(?1, NULL, gone_at_ms),
                                     events = coalesce(?3, events)
             WHERE key_id = ?4",
        )
        .bind(is_url_changed)
        .bind(url)
        .bind(events.map(WebhookEvents::to_text))
        .bind(key.id.to_string())
        .execute(&mut *transaction)
        .await?;
        let action = AuditAction::WebhookEdited;
        audit_key_in(&mut transaction, (*at, by), action, *key, detail.clone()).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Stores a key's new secret. The one before signs until `previous_until`.
    pub(in crate::hooks) async fn set_secret(&self, new: NewKeySecret, by: &Actor) -> Result<(), WebhookError> {
        let NewKeySecret { key, salt, tag, previous_until, detail, at } = new;
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        add_row(&mut transaction, key.id).await?;
        // The right-hand sides read the row as it was before the update.
        sqlx::query(
            "UPDATE webhook_keys SET previous_salt = iif(?1 IS NULL, NULL, secret_salt),
                                     previous_tag = iif(?1 IS NULL, NULL, secret_tag),
                                     previous_until_ms = iif(secret_salt IS NULL, NULL, ?1),
                                     secret_salt = ?2, secret_tag = ?3, secret_made_at_ms = ?4
             WHERE key_id = ?5",
        )
        .bind(previous_until.map(to_milliseconds))
        .bind(&salt[..])
        .bind(&tag[..])
        .bind(to_milliseconds(at))
        .bind(key.id.to_string())
        .execute(&mut *transaction)
        .await?;
        audit_key_in(&mut transaction, (at, by), AuditAction::WebhookSecretMade, key, detail).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// What the secrets that sign for a key now follow from, the newest first.
    pub(in crate::hooks) async fn secrets(
        &self,
        key: KeyId,
        now: OffsetDateTime,
    ) -> Result<Vec<StoredSecret>, WebhookError> {
        let row = sqlx::query(
            "SELECT secret_salt, secret_tag, previous_salt, previous_tag, previous_until_ms FROM webhook_keys
             WHERE key_id = ?",
        );
        let Some(row) = row.bind(key.to_string()).fetch_optional(self.0.pool()).await? else { return Ok(Vec::new()) };
        let until: Option<i64> = row.try_get("previous_until_ms")?;
        let is_overlapping = until.is_some_and(|until| until > to_milliseconds(now));
        let current = stored(row.try_get("secret_salt")?, row.try_get("secret_tag")?);
        let previous = stored(row.try_get("previous_salt")?, row.try_get("previous_tag")?);
        Ok(current.into_iter().chain(previous.filter(|_| is_overlapping)).collect())
    }

    /// Whether a key has a secret.
    pub(in crate::hooks) async fn has_secret(&self, key: KeyId) -> Result<bool, WebhookError> {
        Ok(self.of_key(key).await?.secret_made_at.is_some())
    }
}

/// The default of a key's jobs, where there is one that can be used: its URL and events.
pub(super) async fn usable_default(
    connection: &mut SqliteConnection,
    key: KeyId,
) -> sqlx::Result<Option<(Option<String>, String)>> {
    sqlx::query_as(
        "SELECT iif(gone_at_ms IS NULL, url, NULL), events FROM webhook_keys
         WHERE key_id = ? AND secret_salt IS NOT NULL",
    )
    .bind(key.to_string())
    .fetch_optional(connection)
    .await
}

/// Notes that the receiver of a key's default is gone, unless the default is another one by now.
pub(super) async fn note_gone(
    connection: &mut SqliteConnection,
    (key, url): (KeyId, &str),
    at: OffsetDateTime,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE webhook_keys SET gone_at_ms = coalesce(gone_at_ms, ?) WHERE key_id = ? AND url = ?")
        .bind(to_milliseconds(at))
        .bind(key.to_string())
        .bind(url)
        .execute(connection)
        .await?;
    Ok(())
}

/// A row for a key that has none yet.
async fn add_row(connection: &mut SqliteConnection, key: KeyId) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO webhook_keys (key_id, events) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(key.to_string())
        .bind(WebhookEvents::default().to_text())
        .execute(connection)
        .await?;
    Ok(())
}

/// What a secret follows from; `None` if there is none.
fn stored(salt: Option<Vec<u8>>, tag: Option<Vec<u8>>) -> Option<StoredSecret> {
    Some(StoredSecret { salt: salt?.try_into().ok()?, tag: tag?.try_into().ok()? })
}

fn read(row: &SqliteRow) -> Result<KeyWebhook, WebhookError> {
    let moment = |milliseconds: Option<i64>| milliseconds.and_then(from_milliseconds);
    let events: String = row.try_get("events")?;
    Ok(KeyWebhook {
        url: row.try_get("url")?,
        events: WebhookEvents::from_text(&events),
        gone_at: moment(row.try_get("gone_at_ms")?),
        secret_made_at: moment(row.try_get("secret_made_at_ms")?),
        previous_secret_until: moment(row.try_get("previous_until_ms")?),
    })
}
