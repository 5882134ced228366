//! Alerts: written as deliveries to the operator's receiver and to keys' own, and the log of the former.
//!
//! Whoever raises alerts is no concern of this module: it is given them one after the other, and remembers the last one.

use super::error::WebhookError;
use super::receiver::AlertReceiver;
use super::service::{Inner, Webhooks};
use super::store::NewDelivery;
use super::{Alert, Delivery, DeliveryPage, DeliveryQuery};
use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::WebhookEvent;

impl Webhooks {
    /// The number of the last alert that was given to [`Self::add_alert`]; 0 before the first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_alert(&self) -> Result<i64, WebhookError> {
        self.0.store.last_alert().await
    }

    /// Writes an alert's deliveries, once: none for one that is not after the last. Without a receiver that wants it, and
    /// while webhooks are off, it is told to nobody, also not later.
    ///
    /// # Errors
    /// When the database fails. Nothing is written then, and the alert can be given again.
    pub async fn add_alert(&self, alert: &Alert) -> Result<(), WebhookError> {
        let (receiver, key) = if self.0.is_enabled { (self.0.receiver.as_ref(), alert.key) } else { (None, None) };
        self.0.store.take_alert(alert, receiver, key).await
    }

    /// The host of the operator's receiver, if there is one.
    #[must_use]
    pub fn alert_host(&self) -> Option<String> {
        self.0.receiver.as_ref().map(AlertReceiver::host)
    }

    /// Deliveries to the operator's receiver, newest first. Of its URL they have scheme, host and port.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn alert_deliveries(&self, query: DeliveryQuery) -> Result<DeliveryPage, WebhookError> {
        self.0.store.page(KeyId::NONE, query).await
    }

    /// Sends a test to the operator's receiver.
    ///
    /// # Errors
    /// [`WebhookError::Off`], [`WebhookError::NoReceiver`], or when the database fails.
    pub async fn test_alerts(&self) -> Result<Delivery, WebhookError> {
        let receiver = self.0.usable_receiver()?;
        let new = NewDelivery {
            id: DeliveryId::generate(),
            key: &KeyId::NONE.to_string(),
            job: None,
            alert: None,
            event: WebhookEvent::Test,
            url: &receiver.origin(),
            host: &receiver.host(),
            origin: "",
            is_default: false,
            at: self.0.now(),
        };
        self.0.store.add(&new).await
    }

    /// Sends a delivery to the operator's receiver again, whatever became of it, as [`Self::resend`] does.
    ///
    /// # Errors
    /// [`WebhookError::Off`], [`WebhookError::NoReceiver`], [`WebhookError::NotFound`], or when the database fails.
    pub async fn resend_alert(&self, id: DeliveryId) -> Result<Delivery, WebhookError> {
        self.0.usable_receiver()?;
        self.0.store.resend(KeyId::NONE, id, self.0.now()).await
    }
}

impl Inner {
    fn usable_receiver(&self) -> Result<&AlertReceiver, WebhookError> {
        if !self.is_enabled {
            return Err(WebhookError::Off);
        }
        self.receiver.as_ref().ok_or(WebhookError::NoReceiver)
    }
}
