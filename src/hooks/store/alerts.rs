//! Statements on the table `webhook_alerts_taken`: an alert's deliveries are written once, whatever breaks off in between.

use sqlx::SqliteConnection;

use super::HookStore;
use super::deliveries::{AlertText, NewDelivery, insert};
use super::keys::usable_default;
use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::WebhookEvents;
use crate::hooks::Alert;
use crate::hooks::error::WebhookError;
use crate::hooks::receiver::AlertReceiver;
use crate::hooks::target::host_of;

impl HookStore {
    /// The number of the last alert that was taken; 0 before the first.
    pub(in crate::hooks) async fn last_alert(&self) -> Result<i64, WebhookError> {
        let number: i64 =
            sqlx::query_scalar("SELECT number FROM webhook_alerts_taken").fetch_one(self.0.pool()).await?;
        Ok(number)
    }

    /// Writes an alert's deliveries, to `receiver` and to that of `key`, if it wants them, and notes that it was taken. Writes
    /// nothing for an alert that was taken before.
    pub(in crate::hooks) async fn take_alert(
        &self,
        alert: &Alert,
        receiver: Option<&AlertReceiver>,
        key: Option<KeyId>,
    ) -> Result<(), WebhookError> {
        let mut transaction = self.0.pool().begin_with("BEGIN IMMEDIATE").await?;
        let noted = sqlx::query("UPDATE webhook_alerts_taken SET number = ?1 WHERE number < ?1").bind(alert.number);
        if noted.execute(&mut *transaction).await?.rows_affected() == 0 {
            return Ok(());
        }
        let data = alert.data.to_string();
        if let Some(receiver) = receiver {
            let (key, url, host) = (KeyId::NONE.to_string(), receiver.origin(), receiver.host());
            let new = delivery_of(alert, &data, (&key, &url, &host));
            insert(&mut transaction, &new).await?;
        }
        if let Some(key) = key {
            tell_key(&mut transaction, alert, &data, key).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// Writes the delivery to a key's own receiver, if it has one that wants the event.
async fn tell_key(connection: &mut SqliteConnection, alert: &Alert, data: &str, key: KeyId) -> sqlx::Result<()> {
    let Some((Some(url), events)) = usable_default(&mut *connection, key).await? else { return Ok(()) };
    if !WebhookEvents::from_text(&events).has(alert.event) {
        return Ok(());
    }
    let (key, host) = (key.to_string(), host_of(&url));
    let new = NewDelivery { is_default: true, ..delivery_of(alert, data, (&key, &url, &host)) };
    insert(connection, &new).await
}

fn delivery_of<'a>(alert: &'a Alert, data: &'a str, (key, url, host): (&'a str, &'a str, &'a str)) -> NewDelivery<'a> {
    NewDelivery {
        id: DeliveryId::generate(),
        key,
        job: None,
        alert: Some(AlertText { subject: &alert.subject, data }),
        event: alert.event,
        url,
        host,
        origin: "",
        is_default: false,
        at: alert.at,
    }
}
