//! The outbox: deliveries are written in the transaction of the job's change, so that neither exists without the other. With all
//! statements on the table `job_webhooks`.

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use time::OffsetDateTime;

use super::deliveries::{NewDelivery, insert};
use super::keys::usable_default;
use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::{WebhookEvent, WebhookEvents};
use crate::hooks::target::host_of;
use crate::jobs::{AcceptedRow, JobOutbox};

/// Writes deliveries with the changes of jobs.
pub(in crate::hooks) struct Outbox {
    is_enabled: bool,
    /// The start of URLs where a request did not show it.
    origin: String,
}

impl Outbox {
    /// An outbox for the database of the jobs, whose connections it is given.
    pub(in crate::hooks) fn new(is_enabled: bool, origin: String) -> Self {
        Self { is_enabled, origin }
    }

    /// Stores where the events of a job go, if anywhere.
    async fn subscribe(&self, connection: &mut SqliteConnection, job: AcceptedRow<'_>) -> sqlx::Result<()> {
        // The console's jobs have no key to sign with.
        if !self.is_enabled || job.owner == KeyId::NONE {
            return Ok(());
        }
        let Some((default_url, default_events)) = usable_default(connection, job.owner).await? else { return Ok(()) };
        let asked_url = job.webhook.and_then(|webhook| webhook.url.as_deref());
        let Some(url) = asked_url.or(default_url.as_deref()) else { return Ok(()) };
        let asked_events = job.webhook.and_then(|webhook| webhook.events.as_ref());
        // The key's events belong to its own URL.
        let events = match (asked_events, asked_url) {
            (Some(events), _) => events.to_text(),
            (None, Some(_)) => WebhookEvents::default().to_text(),
            (None, None) => default_events,
        };
        let asked_origin = job.webhook.and_then(|webhook| webhook.origin.as_deref());
        sqlx::query(
            "INSERT INTO job_webhooks (job_id, key_id, url, events, origin, is_default) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(job.id.to_string())
        .bind(job.owner.to_string())
        .bind(url)
        .bind(events)
        .bind(asked_origin.unwrap_or(&self.origin))
        .bind(asked_url.is_none())
        .execute(connection)
        .await?;
        Ok(())
    }
}

impl JobOutbox for Outbox {
    fn accepted<'a>(
        &'a self,
        connection: &'a mut SqliteConnection,
        job: AcceptedRow<'a>,
    ) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(self.subscribe(connection, job))
    }

    fn happened<'a>(
        &'a self,
        connection: &'a mut SqliteConnection,
        row_id: &'a str,
        event: WebhookEvent,
        at: OffsetDateTime,
    ) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(publish(connection, row_id, event, at))
    }
}

/// Writes the delivery of an event, if the job has a webhook for it. The last event of a job ends its webhook.
async fn publish(
    connection: &mut SqliteConnection,
    row_id: &str,
    event: WebhookEvent,
    at: OffsetDateTime,
) -> sqlx::Result<()> {
    let row: Option<(String, String, String, String, bool)> =
        sqlx::query_as("SELECT key_id, url, events, origin, is_default FROM job_webhooks WHERE job_id = ?")
            .bind(row_id)
            .fetch_optional(&mut *connection)
            .await?;
    let Some((key, url, events, origin, is_default)) = row else { return Ok(()) };
    if WebhookEvents::from_text(&events).has(event) {
        let new = NewDelivery {
            id: DeliveryId::generate(),
            key: &key,
            job: Some(row_id),
            event,
            url: &url,
            host: &host_of(&url),
            origin: &origin,
            is_default,
            at,
        };
        insert(&mut *connection, &new).await?;
    }
    if event != WebhookEvent::Started {
        sqlx::query("DELETE FROM job_webhooks WHERE job_id = ?").bind(row_id).execute(connection).await?;
    }
    Ok(())
}
