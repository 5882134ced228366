//! Statements on the table `webhook_deliveries`: what is due, what became of it, and the log.

use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use time::OffsetDateTime;

use super::HookStore;
use super::keys::note_gone;
use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::WebhookEvent;
use crate::hooks::error::WebhookError;
use crate::hooks::flights::Busy;
use crate::hooks::{DELIVERIES_PER_PAGE_MAX, Delivery, DeliveryPage, DeliveryQuery, DeliveryState};
use crate::store::{from_milliseconds, to_milliseconds};

/// Most deliveries that wait for one key. More are in the log at once, as failed.
const PENDING_PER_KEY_MAX: u32 = 50_000;

/// What a delivery beyond that says.
const TOO_MANY: &str = "too many deliveries of the key were waiting";

/// A delivery to be written.
pub(in crate::hooks) struct NewDelivery<'a> {
    pub(in crate::hooks) id: DeliveryId,
    /// The key's id as stored.
    pub(in crate::hooks) key: &'a str,
    /// The job's id as stored.
    pub(in crate::hooks) job: Option<&'a str>,
    pub(in crate::hooks) alert: Option<AlertText<'a>>,
    pub(in crate::hooks) event: WebhookEvent,
    pub(in crate::hooks) url: &'a str,
    pub(in crate::hooks) host: &'a str,
    pub(in crate::hooks) origin: &'a str,
    pub(in crate::hooks) is_default: bool,
    pub(in crate::hooks) at: OffsetDateTime,
}

/// What a delivery says that is about no job.
#[derive(Clone, Copy)]
pub(in crate::hooks) struct AlertText<'a> {
    /// What it is about: of the same key and subject, each event is told once, in order.
    pub(in crate::hooks) subject: &'a str,
    /// JSON.
    pub(in crate::hooks) data: &'a str,
}

/// A delivery to be tried now.
pub(in crate::hooks) struct DueDelivery {
    pub(in crate::hooks) delivery: Delivery,
    /// Its number, in the order of events.
    pub(in crate::hooks) number: i64,
    pub(in crate::hooks) host: String,
    /// The start of the URLs in it.
    pub(in crate::hooks) origin: String,
    pub(in crate::hooks) is_default: bool,
    /// What it says, if it is an alert.
    pub(in crate::hooks) data: Option<Value>,
    /// Failures since it was last asked for.
    pub(in crate::hooks) failures: u32,
}

/// What became of an attempt.
pub(in crate::hooks) struct Attempted {
    pub(in crate::hooks) status: Option<u16>,
    pub(in crate::hooks) error: Option<String>,
    pub(in crate::hooks) at: OffsetDateTime,
    /// When to try again. `None`: it has ended.
    pub(in crate::hooks) next_at: Option<OffsetDateTime>,
    /// Whether the receiver is gone.
    pub(in crate::hooks) is_gone: bool,
}

macro_rules! select_deliveries {
    ($rest:literal) => {
        concat!(
            "SELECT number, id, key_id, job_id, subject, data, event, url, host, origin, is_default, happened_at_ms, state, \
             attempts, failures, next_at_ms, tried_at_ms, ended_at_ms, last_status, last_error FROM webhook_deliveries ",
            $rest
        )
    };
}

/// Writes a delivery that is due at once. An event of a job or of a subject that is there already is not written again.
pub(super) async fn insert(connection: &mut SqliteConnection, new: &NewDelivery<'_>) -> sqlx::Result<()> {
    let waiting: u32 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT 1 FROM webhook_deliveries WHERE key_id = ? AND state = 'pending' LIMIT ?)",
    )
    .bind(new.key)
    .bind(PENDING_PER_KEY_MAX)
    .fetch_one(&mut *connection)
    .await?;
    let is_dropped = waiting >= PENDING_PER_KEY_MAX;
    let at = to_milliseconds(new.at);
    sqlx::query(
        "INSERT INTO webhook_deliveries (id, key_id, job_id, event, url, host, origin, is_default, happened_at_ms, state,
                                         next_at_ms, ended_at_ms, last_error, subject, data)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(new.id.to_string())
    .bind(new.key)
    .bind(new.job)
    .bind(new.event.as_str())
    .bind(new.url)
    .bind(new.host)
    .bind(new.origin)
    .bind(new.is_default)
    .bind(at)
    .bind(if is_dropped { "failed" } else { "pending" })
    .bind((!is_dropped).then_some(at))
    .bind(is_dropped.then_some(at))
    .bind(is_dropped.then_some(TOO_MANY))
    .bind(new.alert.map(|alert| alert.subject))
    .bind(new.alert.map(|alert| alert.data))
    .execute(connection)
    .await?;
    Ok(())
}

impl HookStore {
    /// Writes a delivery by itself, and returns it.
    pub(in crate::hooks) async fn add(&self, new: &NewDelivery<'_>) -> Result<Delivery, WebhookError> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        insert(&mut transaction, new).await?;
        let row = sqlx::query(select_deliveries!("WHERE id = ?")).bind(new.id.to_string());
        let delivery = read(&row.fetch_one(&mut *transaction).await?)?.delivery;
        transaction.commit().await?;
        Ok(delivery)
    }

    /// What is to be tried now, the longest due first: of each job, and of each subject of a key, only the first that is
    /// pending, and nothing that is busy. A row that cannot be read is left out.
    pub(in crate::hooks) async fn due(
        &self,
        now: OffsetDateTime,
        busy: &Busy,
    ) -> Result<Vec<DueDelivery>, WebhookError> {
        let keys: Vec<String> = busy.keys.iter().map(ToString::to_string).collect();
        // Left to itself, SQLite would look for an earlier one of the same subject among all that wait for the key.
        let rows = sqlx::query(select_deliveries!(
            "AS due WHERE state = 'pending' AND next_at_ms <= ?1
                 AND number NOT IN (SELECT value FROM json_each(?2))
                 AND host NOT IN (SELECT value FROM json_each(?3))
                 AND key_id NOT IN (SELECT value FROM json_each(?4))
                 AND NOT EXISTS (SELECT 1 FROM webhook_deliveries AS earlier
                                 WHERE earlier.job_id = due.job_id AND earlier.state = 'pending'
                                     AND earlier.number < due.number)
                 AND NOT EXISTS (SELECT 1 FROM webhook_deliveries AS earlier INDEXED BY webhook_deliveries_by_subject
                                 WHERE earlier.subject = due.subject AND earlier.key_id = due.key_id
                                     AND earlier.state = 'pending' AND earlier.number < due.number)
             ORDER BY next_at_ms, number LIMIT ?5"
        ))
        .bind(to_milliseconds(now))
        .bind(list(&busy.numbers))
        .bind(list(&busy.hosts))
        .bind(list(&keys))
        .bind(u32::try_from(busy.room).unwrap_or(u32::MAX))
        .fetch_all(self.0.pool())
        .await?;
        let readable = |row: &SqliteRow| {
            let read = read(row).inspect_err(|error| tracing::warn!(%error, "a delivery is left out"));
            read.ok()
        };
        Ok(rows.iter().filter_map(readable).collect())
    }

    /// Stores what became of an attempt. A delivery that was asked for again meanwhile stays due.
    pub(in crate::hooks) async fn note_attempt(
        &self,
        due: &DueDelivery,
        attempted: &Attempted,
    ) -> Result<(), WebhookError> {
        let Attempted { status, error, at, next_at, is_gone } = attempted;
        let state = match (next_at, error) {
            (Some(_), _) => "pending",
            (None, Some(_)) => "failed",
            (None, None) => "delivered",
        };
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "UPDATE webhook_deliveries SET state = iif(next_at_ms IS ?9, ?1, state), attempts = attempts + 1,
                                           failures = iif(next_at_ms IS ?9, failures + ?2, failures),
                                           next_at_ms = iif(next_at_ms IS ?9, ?3, next_at_ms),
                                           tried_at_ms = ?4, ended_at_ms = iif(next_at_ms IS ?9, ?5, ended_at_ms),
                                           last_status = ?6, last_error = ?7
             WHERE number = ?8",
        )
        .bind(state)
        .bind(error.is_some())
        .bind(next_at.map(to_milliseconds))
        .bind(to_milliseconds(*at))
        .bind(next_at.is_none().then(|| to_milliseconds(*at)))
        .bind(*status)
        .bind(error.as_deref())
        .bind(due.number)
        .bind(due.delivery.next_at.map(to_milliseconds))
        .execute(&mut *transaction)
        .await?;
        if *is_gone && due.is_default {
            note_gone(&mut transaction, (due.delivery.key, &due.delivery.url), *at).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Puts off a delivery that could not be tried for a reason of this worker's own, which counts as no attempt.
    pub(in crate::hooks) async fn postpone(&self, number: i64, next_at: OffsetDateTime) -> Result<(), WebhookError> {
        sqlx::query("UPDATE webhook_deliveries SET next_at_ms = ? WHERE number = ? AND state = 'pending'")
            .bind(to_milliseconds(next_at))
            .bind(number)
            .execute(self.0.pool())
            .await?;
        Ok(())
    }

    /// Makes a key's delivery due now, whatever became of it, and returns it.
    pub(in crate::hooks) async fn resend(
        &self,
        key: KeyId,
        id: DeliveryId,
        now: OffsetDateTime,
    ) -> Result<Delivery, WebhookError> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let resent = sqlx::query(
            "UPDATE webhook_deliveries SET state = 'pending', failures = 0, next_at_ms = ?, ended_at_ms = NULL
             WHERE id = ? AND key_id = ?",
        );
        let resent = resent.bind(to_milliseconds(now)).bind(id.to_string()).bind(key.to_string());
        if resent.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Err(WebhookError::NotFound);
        }
        let row = sqlx::query(select_deliveries!("WHERE id = ?")).bind(id.to_string());
        let delivery = read(&row.fetch_one(&mut *transaction).await?)?.delivery;
        transaction.commit().await?;
        Ok(delivery)
    }

    /// A key's deliveries, newest first. A row that cannot be read is left out.
    pub(in crate::hooks) async fn page(&self, key: KeyId, query: DeliveryQuery) -> Result<DeliveryPage, WebhookError> {
        let deliveries_max = query.deliveries_max.clamp(1, DELIVERIES_PER_PAGE_MAX);
        let mut rows = sqlx::query(select_deliveries!(
            "WHERE key_id = ?1 AND (?3 IS NULL OR state = ?3)
                 AND (?2 IS NULL OR number < (SELECT number FROM webhook_deliveries WHERE id = ?2 AND key_id = ?1))
             ORDER BY number DESC LIMIT ?4"
        ))
        .bind(key.to_string())
        .bind(query.before.map(|id| id.to_string()))
        .bind(query.state.map(DeliveryState::as_str))
        // One more than requested tells whether there is a next page.
        .bind(deliveries_max + 1)
        .fetch_all(self.0.pool())
        .await?;
        let has_more = rows.len() > deliveries_max as usize;
        rows.truncate(deliveries_max as usize);
        let deliveries: Vec<Delivery> = rows.iter().filter_map(|row| read(row).ok()).map(|due| due.delivery).collect();
        let next = deliveries.last().map(|delivery| delivery.id).filter(|_| has_more);
        Ok(DeliveryPage { deliveries, next })
    }
}

/// A list as JSON, for `json_each`.
pub(super) fn list<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("numbers and words are plain data")
}

fn read(row: &SqliteRow) -> Result<DueDelivery, WebhookError> {
    let stored_id: String = row.try_get("id")?;
    let corrupt = |column| WebhookError::CorruptRow { id: stored_id.clone(), column };
    let text = |column: &str| row.try_get::<String, _>(column);
    let moment = |column: &str| row.try_get::<Option<i64>, _>(column).map(|at| at.and_then(from_milliseconds));
    let count = |column: &str| row.try_get::<i64, _>(column).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let status: Option<i64> = row.try_get("last_status")?;
    let delivery = Delivery {
        id: stored_id.parse().map_err(|_| corrupt("id"))?,
        key: text("key_id")?.parse().map_err(|_| corrupt("key_id"))?,
        job: row.try_get("job_id")?,
        subject: row.try_get("subject")?,
        event: text("event")?.parse().map_err(|_| corrupt("event"))?,
        url: text("url")?,
        happened_at: moment("happened_at_ms")?.ok_or_else(|| corrupt("happened_at_ms"))?,
        state: text("state")?.parse().map_err(|_| corrupt("state"))?,
        attempts: count("attempts")?,
        next_at: moment("next_at_ms")?,
        tried_at: moment("tried_at_ms")?,
        ended_at: moment("ended_at_ms")?,
        last_status: status.and_then(|status| u16::try_from(status).ok()),
        last_error: row.try_get("last_error")?,
    };
    let data: Option<String> = row.try_get("data")?;
    let data = data.map(|data| serde_json::from_str::<Value>(&data)).transpose();
    Ok(DueDelivery {
        delivery,
        data: data.map_err(|_| corrupt("data"))?,
        number: row.try_get("number")?,
        host: text("host")?,
        origin: text("origin")?,
        is_default: row.try_get("is_default")?,
        failures: count("failures")?,
    })
}
