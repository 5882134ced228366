//! Webhooks: tells receivers of the events of jobs, signed as [Standard Webhooks](https://www.standardwebhooks.com) asks, at
//! least once and in order for each job.
//!
//! An event is written with the job's own change (`store/outbox.rs`), so neither exists without the other; `courier.rs` delivers
//! what is due. A receiver is somebody else's choice of address: `target.rs` and `resolver.rs` decide where a connection may go.
//! What a delivery says of a job is written by a function that this module is given.

mod address;
mod backoff;
mod courier;
mod error;
mod flights;
mod payload;
mod resolver;
mod secret;
mod sender;
mod service;
mod signature;
mod store;
mod target;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use time::OffsetDateTime;

pub use error::WebhookError;
pub use secret::PlainSecret;
pub use service::{NewSecret, WebhookChanges, WebhookParts, Webhooks};
pub use target::BadUrl;

use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::{AllowedHosts, WebhookEvent, WebhookEvents};
use crate::jobs::{JobOutbox, JobReport};

/// Longest URL of a receiver, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Maximum deliveries in one page of a log.
pub const DELIVERIES_PER_PAGE_MAX: u32 = 100;

/// How long the secret before a rotation signs as well, unless the request says otherwise: a day, in seconds.
pub const GRACE_SECONDS_DEFAULT: u64 = 24 * 60 * 60;

/// Writes a job as its owner gets it, with URLs that begin with the given text.
pub type Render = dyn Fn(&JobReport, &str) -> Value + Send + Sync;

/// Finds the addresses of a host name.
pub type Lookup = dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync;

/// Settings of webhooks.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Whether anything is delivered, and requests may ask for it.
    pub is_enabled: bool,
    /// Whether receivers without https are allowed.
    pub allows_http: bool,
    /// Receivers that are allowed although they are in a private network.
    pub allowed_hosts: AllowedHosts,
    /// Whether no others are allowed.
    pub only_allowed_hosts: bool,
    /// File of the secret that all keys' secrets follow from; created if missing. Not part of the database, so that a copy of
    /// the database signs nothing.
    pub secret_path: PathBuf,
    /// The start of URLs in deliveries of jobs whose request did not show how it reached this worker.
    pub origin: String,
}

/// State of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// To be tried, or tried again.
    Pending,
    /// The receiver has it.
    Delivered,
    /// Given up.
    Failed,
}

/// A word that is no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown state of a delivery")]
pub struct UnknownDeliveryState;

impl DeliveryState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    /// Its name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = UnknownDeliveryState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownDeliveryState)
    }
}

/// A delivery: an entry of the log, or what is still to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id, the same for all attempts.
    pub id: DeliveryId,
    /// The key whose job it is about.
    pub key: KeyId,
    /// The job's id as stored. `None` for a test.
    pub job: Option<String>,
    /// What it tells of.
    pub event: WebhookEvent,
    /// Where it goes.
    pub url: String,
    /// When the event happened.
    pub happened_at: OffsetDateTime,
    /// Its state.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// When the next attempt is due, if it is pending.
    pub next_at: Option<OffsetDateTime>,
    /// When it was last tried.
    pub tried_at: Option<OffsetDateTime>,
    /// When it was delivered or given up.
    pub ended_at: Option<OffsetDateTime>,
    /// The status of the last answer.
    pub last_status: Option<u16>,
    /// What was wrong with the last attempt, in a few words of ours.
    pub last_error: Option<String>,
}

/// Which deliveries of a key to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryQuery {
    /// Only those before this one.
    pub before: Option<DeliveryId>,
    /// Only those in this state.
    pub state: Option<DeliveryState>,
    /// Maximum deliveries to return, up to [`DELIVERIES_PER_PAGE_MAX`].
    pub deliveries_max: u32,
}

/// Some deliveries, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryPage {
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins, if there is one.
    pub next: Option<DeliveryId>,
}

/// A key's webhook: the default of its jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyWebhook {
    /// Where events go unless a request says otherwise.
    pub url: Option<String>,
    /// The events, unless a request says otherwise.
    pub events: WebhookEvents,
    /// Since when the receiver says that it is gone: nothing is sent to it until the URL is set again.
    pub gone_at: Option<OffsetDateTime>,
    /// When its secret was made. `None`: it has none.
    pub secret_made_at: Option<OffsetDateTime>,
    /// Until when the secret before that signs as well.
    pub previous_secret_until: Option<OffsetDateTime>,
}

/// Writes events with the changes of jobs that they are about.
#[must_use]
pub fn outbox(settings: &WebhookSettings) -> Arc<dyn JobOutbox> {
    Arc::new(store::Outbox::new(settings.is_enabled, settings.origin.clone()))
}
