//! The service: keys' webhooks and their secrets, what requests ask for, the log. `courier.rs` delivers.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;

use super::error::WebhookError;
use super::flights::Flights;
use super::receiver::AlertReceiver;
use super::secret::{MasterSecret, PlainSecret, SigningSecret, new_salt};
use super::sender::Sender;
use super::store::{HookStore, KeyChange, NewDelivery, NewKeySecret};
use super::target::{Rules, host_of};
use super::{Delivery, DeliveryPage, DeliveryQuery, KeyWebhook, Lookup, Render, WebhookSettings, resolver};
use crate::auth::{Actor, AuditedKey, Change, GRACE_SECONDS_MAX, KeyError, KeyRecord, KeyService, KeyState};
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::{DeliveryId, KeyId};
use crate::domain::webhook::{JobWebhook, WebhookEvent, WebhookEvents};
use crate::jobs::JobService;
use crate::store::Store;

/// Parts of the service.
pub struct WebhookParts {
    /// The database.
    pub store: Store,
    /// The keys.
    pub keys: KeyService,
    /// The jobs.
    pub jobs: JobService,
    /// Writes a job as its owner gets it.
    pub render: Arc<Render>,
    /// Finds addresses; `None`: as this machine does.
    pub lookup: Option<Arc<Lookup>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Its settings.
    pub settings: WebhookSettings,
}

/// The service. Clones share it.
#[derive(Clone)]
pub struct Webhooks(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: HookStore,
    pub(super) keys: KeyService,
    pub(super) jobs: JobService,
    pub(super) render: Arc<Render>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sender: Sender,
    pub(super) flights: Flights,
    pub(super) is_enabled: bool,
    /// The operator's receiver of alerts.
    pub(super) receiver: Option<AlertReceiver>,
    master: MasterSecret,
    rules: Arc<Rules>,
}

/// Changes to a key's webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookChanges {
    /// Its URL.
    pub url: Change<String>,
    /// Its events. `None`: as they are.
    pub events: Option<WebhookEvents>,
}

/// A secret that was just made: the only time it is available.
#[derive(Debug)]
pub struct NewSecret {
    /// The secret.
    pub secret: PlainSecret,
    /// The key's webhook as it is now.
    pub webhook: KeyWebhook,
}

impl Webhooks {
    /// Opens the service. Reads the file of the secret, or creates it.
    ///
    /// # Errors
    /// When the file cannot be read or created, or no request can be sent.
    pub async fn open(parts: WebhookParts) -> Result<Self, WebhookError> {
        let WebhookParts { store, keys, jobs, render, lookup, clock, settings } = parts;
        let path = settings.secret_path.clone();
        let master = spawn_blocking(move || MasterSecret::open(&path)).await.map_err(io::Error::other)??;
        let rules = Arc::new(Rules::of(&settings));
        let of_system = || -> Arc<Lookup> { Arc::new(resolver::of_system) };
        let sender = Sender::new(Arc::clone(&rules), lookup.unwrap_or_else(of_system)).map_err(WebhookError::Client)?;
        Ok(Self(Arc::new(Inner {
            store: HookStore::new(store),
            keys,
            jobs,
            render,
            clock,
            sender,
            flights: Flights::default(),
            is_enabled: settings.is_enabled,
            receiver: settings.alerts,
            master,
            rules,
        })))
    }

    /// Checks what a request of a key says of its job's webhook.
    ///
    /// # Errors
    /// [`WebhookError::Off`], [`WebhookError::Url`], [`WebhookError::NoUrl`], [`WebhookError::NoSecret`], or when the database
    /// fails. A request that says nothing of it is fine.
    pub async fn check(&self, key: KeyId, webhook: &JobWebhook) -> Result<(), WebhookError> {
        if webhook.url.is_none() && webhook.events.is_none() {
            return Ok(());
        }
        if !self.0.is_enabled {
            return Err(WebhookError::Off);
        }
        let url = webhook.url.as_deref().map(|url| self.0.rules.check(url)).transpose();
        let url = url.map_err(WebhookError::Url)?;
        let known = self.0.store.of_key(key).await?;
        // Asking for no events is always possible.
        let is_quiet = webhook.events.as_ref() == Some(&WebhookEvents::from_text(""));
        if url.is_none() && known.url.is_none() && !is_quiet {
            return Err(WebhookError::NoUrl);
        }
        if known.secret_made_at.is_none() && !is_quiet { Err(WebhookError::NoSecret) } else { Ok(()) }
    }

    /// A key's webhook.
    ///
    /// # Errors
    /// When there is no such key, or the database fails.
    pub async fn get(&self, key: KeyId) -> Result<KeyWebhook, WebhookError> {
        self.0.keys.get(key).await?;
        self.0.of_key(key).await
    }

    /// Changes a key's webhook, for jobs that are accepted from now on.
    ///
    /// # Errors
    /// [`WebhookError::Url`], [`WebhookError::NoSecret`], or when the key is missing or revoked, or the database fails.
    pub async fn edit(&self, key: KeyId, changes: WebhookChanges, by: &Actor) -> Result<KeyWebhook, WebhookError> {
        let record = self.0.unrevoked(key).await?;
        let WebhookChanges { url, events } = &changes;
        if let Change::Set(url) = url {
            self.0.rules.check(url).map_err(WebhookError::Url)?;
            if !self.0.store.has_secret(key).await? {
                return Err(WebhookError::NoSecret);
            }
        }
        // Of a URL only the host: the rest may be a secret.
        let mut detail = json!({});
        let url = match url {
            Change::Keep => Change::Keep,
            Change::Remove => {
                detail["host"] = serde_json::Value::Null;
                Change::Remove
            }
            Change::Set(url) => {
                detail["host"] = host_of(url).into();
                Change::Set(url.as_str())
            }
        };
        if let Some(events) = events {
            detail["events"] = events.names().collect();
        }
        if url != Change::Keep || events.is_some() {
            let at = self.0.now();
            let change = KeyChange { key: audited(&record), url, events: events.as_ref(), detail, at };
            self.0.store.change(&change, by).await?;
        }
        self.0.of_key(key).await
    }

    /// Gives a key a new webhook secret. The one before signs as well for `grace_seconds` more.
    ///
    /// # Errors
    /// When the grace is too long, the key is missing or revoked, or the database fails.
    pub async fn make_secret(&self, key: KeyId, grace_seconds: u64, by: &Actor) -> Result<NewSecret, WebhookError> {
        if grace_seconds > GRACE_SECONDS_MAX {
            return Err(KeyError::GraceTooLong.into());
        }
        let record = self.0.unrevoked(key).await?;
        let (salt, at) = (new_salt()?, self.0.now());
        let secret = self.0.master.derive(key, &salt);
        let until = at + time::Duration::seconds(grace_seconds.cast_signed());
        let previous_until = Some(until).filter(|_| grace_seconds > 0);
        let detail = json!({ "grace_seconds": grace_seconds });
        let new = NewKeySecret { key: audited(&record), salt, tag: secret.tag(), previous_until, detail, at };
        self.0.store.set_secret(new, by).await?;
        Ok(NewSecret { secret: secret.to_plain(), webhook: self.0.of_key(key).await? })
    }

    /// Sends a test to a key's URL.
    ///
    /// # Errors
    /// [`WebhookError::Off`], [`WebhookError::NoUrl`], [`WebhookError::NoSecret`], or when the key is missing or revoked, or the
    /// database fails.
    pub async fn test(&self, key: KeyId) -> Result<Delivery, WebhookError> {
        self.0.unrevoked(key).await?;
        if !self.0.is_enabled {
            return Err(WebhookError::Off);
        }
        let KeyWebhook { url, secret_made_at, .. } = self.0.of_key(key).await?;
        let url = url.ok_or(WebhookError::NoUrl)?;
        if secret_made_at.is_none() {
            return Err(WebhookError::NoSecret);
        }
        let new = NewDelivery {
            id: DeliveryId::generate(),
            key: &key.to_string(),
            job: None,
            alert: None,
            event: WebhookEvent::Test,
            url: &url,
            host: &host_of(&url),
            origin: "",
            is_default: true,
            at: self.0.now(),
        };
        self.0.store.add(&new).await
    }

    /// A key's deliveries, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deliveries(&self, key: KeyId, query: DeliveryQuery) -> Result<DeliveryPage, WebhookError> {
        self.0.store.page(key, query).await
    }

    /// Sends a key's delivery again, whatever became of it: with the same id, and as many attempts as a new one has.
    ///
    /// # Errors
    /// [`WebhookError::Off`], [`WebhookError::NotFound`] also for deliveries of other keys, or when the database fails.
    pub async fn resend(&self, key: KeyId, id: DeliveryId) -> Result<Delivery, WebhookError> {
        if !self.0.is_enabled {
            return Err(WebhookError::Off);
        }
        self.0.store.resend(key, id, self.0.now()).await
    }
}

impl Inner {
    pub(super) fn now(&self) -> OffsetDateTime {
        to_the_millisecond(self.clock.now())
    }

    /// The secrets that sign for a key now, the newest first; at least one. One before it that was made with another file is left out:
    /// it is lost, and the new one signs by itself.
    pub(super) async fn secrets(&self, key: KeyId) -> Result<Vec<Arc<SigningSecret>>, WebhookError> {
        let stored = self.store.secrets(key, self.now()).await?;
        if stored.is_empty() {
            return Err(WebhookError::NoSecret);
        }
        let mut secrets = Vec::with_capacity(stored.len());
        for known in stored {
            let secret = self.master.derive(key, &known.salt);
            if secret.tag() == known.tag {
                secrets.push(Arc::new(secret));
            } else if secrets.is_empty() {
                return Err(WebhookError::OtherSecret);
            }
        }
        Ok(secrets)
    }

    /// A key's webhook. A secret whose time is over is not shown.
    async fn of_key(&self, key: KeyId) -> Result<KeyWebhook, WebhookError> {
        let mut webhook = self.store.of_key(key).await?;
        webhook.previous_secret_until = webhook.previous_secret_until.filter(|until| *until > self.now());
        Ok(webhook)
    }

    /// A key that is not revoked.
    async fn unrevoked(&self, key: KeyId) -> Result<KeyRecord, WebhookError> {
        let record = self.keys.get(key).await?;
        if record.state == KeyState::Revoked { Err(KeyError::Ended(record.state).into()) } else { Ok(record) }
    }
}

fn audited(record: &KeyRecord) -> AuditedKey {
    AuditedKey { id: record.id, prefix: record.prefix }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").finish_non_exhaustive()
    }
}
