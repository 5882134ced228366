//! Every statement on the table `loras`.
//!
//! A change and its audit entry are written in one transaction. One that changes files as well begins by locking out all other
//! writers, also those of other processes: so no file gets or loses its name between another's look at the rows and its change.

use std::collections::HashSet;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteTransaction};
use time::OffsetDateTime;

use super::error::LoraError;
use super::{LORAS_MAX, Lora, name};
use crate::auth::{Actor, AuditAction, audit_in};
use crate::domain::adapter::AdapterId;
use crate::store::{Store, StoreError, from_milliseconds, to_milliseconds};

/// The statements on LoRAs.
#[derive(Debug, Clone)]
pub(super) struct LoraStore(Store);

macro_rules! select_loras {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, bytes, report, thumbnail IS NOT NULL AS has_thumbnail, added_by, created_at_ms FROM loras ",
            $rest
        )
    };
}

/// A LoRA to be stored. Its name is the one that is tried first.
pub(super) struct NewLora<'a> {
    pub(super) lora: Lora,
    pub(super) thumbnail: Option<&'a [u8]>,
    /// Whether it may get another name.
    pub(super) is_name_free: bool,
}

/// Outcome of an insertion.
pub(super) enum Insertion {
    /// It was there.
    There(Lora),
    /// It is there once this is committed.
    Pending(Held, Lora),
}

/// A transaction that locks out all other writers. Dropping it changes nothing.
pub(super) struct Held(SqliteTransaction<'static>);

impl LoraStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    /// All LoRAs, by name.
    pub(super) async fn all(&self) -> Result<Vec<Lora>, LoraError> {
        let rows = sqlx::query(select_loras!("ORDER BY name, id")).fetch_all(self.0.pool()).await?;
        rows.iter().map(read).collect()
    }

    /// The LoRA with this id or name.
    pub(super) async fn find(&self, wanted: &str) -> Result<Option<Lora>, LoraError> {
        let row = sqlx::query(select_loras!("WHERE id = ?1 OR name = ?1"));
        row.bind(wanted).fetch_optional(self.0.pool()).await?.as_ref().map(read).transpose()
    }

    /// The thumbnail of a LoRA, JPEG.
    pub(super) async fn thumbnail(&self, id: &AdapterId) -> Result<Option<Vec<u8>>, LoraError> {
        let image = sqlx::query_scalar::<_, Option<Vec<u8>>>("SELECT thumbnail FROM loras WHERE id = ?");
        Ok(image.bind(id.as_str()).fetch_optional(self.0.pool()).await?.flatten())
    }

    /// Locks out all other writers.
    pub(super) async fn hold(&self) -> Result<Held, LoraError> {
        Ok(Held(self.0.pool().begin_with("BEGIN IMMEDIATE").await?))
    }

    /// Inserts a LoRA, unless it is there. Its file is given its name before the commit.
    pub(super) async fn insert(&self, new: NewLora<'_>, by: &Actor) -> Result<Insertion, LoraError> {
        let NewLora { mut lora, thumbnail, is_name_free } = new;
        let mut held = self.hold().await?;
        if let Some(there) = held.find(lora.id.as_str()).await? {
            return Ok(Insertion::There(there));
        }
        if held.count().await? >= LORAS_MAX {
            return Err(LoraError::TooMany);
        }
        lora.name = held.free_name(&lora.name, is_name_free).await?;
        let insert = sqlx::query(
            "INSERT INTO loras (id, name, bytes, report, thumbnail, added_by, created_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        );
        insert
            .bind(lora.id.as_str())
            .bind(&lora.name)
            .bind(i64::try_from(lora.bytes).unwrap_or(i64::MAX))
            .bind(serde_json::to_string(&lora.report).expect("a report is plain data"))
            .bind(thumbnail)
            .bind(&lora.added_by)
            .bind(to_milliseconds(lora.created_at))
            .execute(&mut *held.0)
            .await?;
        audit_in(&mut held.0, (lora.created_at, by), AuditAction::LoraAdded, detail(&lora)).await?;
        Ok(Insertion::Pending(held, lora))
    }

    /// Deletes a row. Its file has to be removed after that, see [`Held::has`].
    pub(super) async fn delete(&self, lora: &Lora, at: OffsetDateTime, by: &Actor) -> Result<(), LoraError> {
        let mut held = self.hold().await?;
        let delete = sqlx::query("DELETE FROM loras WHERE id = ?").bind(lora.id.as_str());
        // Unfinished jobs refer to the row.
        let deleted = delete.execute(&mut *held.0).await.map_err(|error| match &error {
            sqlx::Error::Database(cause) if cause.is_foreign_key_violation() => LoraError::InUse(lora.name.clone()),
            _ => error.into(),
        })?;
        if deleted.rows_affected() == 0 {
            return Err(LoraError::NotFound(lora.name.clone()));
        }
        audit_in(&mut held.0, (at, by), AuditAction::LoraRemoved, detail(lora)).await?;
        held.commit().await
    }
}

impl Held {
    /// The ids of all LoRAs.
    pub(super) async fn ids(&mut self) -> Result<HashSet<String>, LoraError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM loras").fetch_all(&mut *self.0).await?;
        Ok(ids.into_iter().collect())
    }

    /// Whether there is a LoRA with this id.
    pub(super) async fn has(&mut self, id: &AdapterId) -> Result<bool, LoraError> {
        Ok(self.find(id.as_str()).await?.is_some())
    }

    pub(super) async fn commit(self) -> Result<(), LoraError> {
        Ok(self.0.commit().await?)
    }

    /// Lets other writers go on, without a change.
    pub(super) async fn release(self) -> Result<(), LoraError> {
        Ok(self.0.rollback().await?)
    }

    async fn count(&mut self) -> Result<u32, LoraError> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM loras").fetch_one(&mut *self.0).await?)
    }

    /// The LoRA with this id or name.
    pub(super) async fn find(&mut self, wanted: &str) -> Result<Option<Lora>, LoraError> {
        let row = sqlx::query(select_loras!("WHERE id = ?1 OR name = ?1"));
        row.bind(wanted).fetch_optional(&mut *self.0).await?.as_ref().map(read).transpose()
    }

    /// The wanted name, or the first one like it that no LoRA has.
    async fn free_name(&mut self, wanted: &str, is_free: bool) -> Result<String, LoraError> {
        for name in name::alternatives(wanted) {
            if self.find(&name).await?.is_none() {
                return Ok(name);
            }
            if !is_free {
                break;
            }
        }
        Err(LoraError::NameTaken(wanted.to_owned()))
    }
}

/// Details of a LoRA for the audit log.
fn detail(lora: &Lora) -> Value {
    json!({ "lora": lora.name, "lora_id": lora.id.as_str(), "bytes": lora.bytes })
}

fn read(row: &SqliteRow) -> Result<Lora, LoraError> {
    let id: String = row.try_get("id")?;
    let corrupt = |column| LoraError::CorruptRow { id: id.clone(), column };
    let report: String = row.try_get("report")?;
    Ok(Lora {
        name: row.try_get("name")?,
        bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
        report: serde_json::from_str(&report).map_err(|_| corrupt("report"))?,
        has_thumbnail: row.try_get("has_thumbnail")?,
        added_by: row.try_get("added_by")?,
        created_at: from_milliseconds(row.try_get("created_at_ms")?).ok_or_else(|| corrupt("created_at_ms"))?,
        id: id.parse().map_err(|_| corrupt("id"))?,
    })
}

impl From<sqlx::Error> for LoraError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(StoreError::from(error))
    }
}
