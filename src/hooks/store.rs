//! Every statement on the tables `webhook_keys`, `job_webhooks` and `webhook_deliveries`.

mod deliveries;
mod keys;
mod outbox;
mod retention;

use super::error::WebhookError;
use crate::store::{ChangeMark, Store, StoreError};

pub(super) use deliveries::{Attempted, DueDelivery, NewDelivery};
pub(super) use keys::{KeyChange, NewKeySecret};
pub(super) use outbox::Outbox;

/// Access to the tables of webhooks.
#[derive(Debug, Clone)]
pub(super) struct HookStore(Store);

impl HookStore {
    pub(super) fn new(store: Store) -> Self {
        Self(store)
    }

    pub(super) fn change_mark(&self) -> Option<ChangeMark> {
        self.0.change_mark()
    }

    /// Whether the database is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.0.pool().is_closed()
    }
}

impl From<sqlx::Error> for WebhookError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(StoreError::from(error))
    }
}
