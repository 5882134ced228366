//! Wires all parts together: the only module that knows all others.

mod bench;
mod cards;
mod cluster;
mod compute_threads;
mod convert;
mod data_lock;
mod doctor;
mod engines;
mod fetching;
mod file_choice;
mod file_uses;
mod free_memory;
mod generate;
mod greeting;
mod heap;
mod hub;
mod kernel_trials;
mod key_rights;
mod loading;
mod logs;
mod lora_report;
mod loras;
mod models;
mod moderation;
mod open_files;
mod part_file;
mod removed_files;
mod results_disk;
mod revoked_keys;
mod serve;
mod surface;
mod uploads;
mod webhooks;

use std::sync::Arc;

use anyhow::{Context as _, bail};

pub use bench::{
    CachedImage, CachingReport, Distance, FidelityReport, FidelityRequest, LoadPart, LoadReport, LoadRequest, Moved,
    Outcome, StagesRequest, TimeReport, TimeRequest, Timing, caching, fidelity, kernels, load, time, write_stages,
};
pub use cluster::{kubernetes_check, kubernetes_connect, kubernetes_manifest};
pub use compute_threads::start_compute_threads;
pub use convert::{ConvertRequest, convert_model};
pub use doctor::{doctor, doctor_for_memory, test_operations};
pub use engines::{DeviceLost, EngineBuilder};
pub use fetching::ProgressLines;
pub use file_uses::uses_of;
pub use generate::{GenerateRequest, ImageFile, LoraFile, generate};
pub use heap::Heap;
pub use hub::{DownloadRequest, download_model, local_model};
pub use kernel_trials::{DISAGREES, try_kernel};
pub use logs::CommandLogs;
pub use loras::{Loras, download_lora, inspect_lora};
pub use models::{check_model, list_models};
pub use serve::{serve, serve_with};

pub use crate::engine::{ChosenKernel, KernelChoices, KernelTiming, KernelTimings, OperationEvent, OperationReport};
pub use crate::hub::{Downloaded, Progress};

use crate::auth::{Actor, AdminService, CreatedKey, KeyService, NewKey, PublicId};
use crate::config::Config;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::limits::KeyLimits;
use crate::domain::password::AdminPassword;
use crate::domain::scope::Scope;
use crate::domain::usage::{Day, DayUsage, by_day};
use crate::jobs::{UsageBuffer, rotate_link_secret};
use crate::kubernetes::unknown_namespaces;
use crate::store::Store;

/// Life of the first start's key, in days: its value may end up in a log, and be forgotten there.
pub(crate) const DEMO_KEY_DAYS: i64 = 30;

/// The description of the HTTP API: OpenAPI 3.1, as JSON.
pub fn api_description() -> String {
    crate::http::openapi_json()
}

/// Invalidates every link to an image issued so far.
///
/// # Errors
/// When there is no data folder, or the new secret cannot be written.
pub fn rotate_links(config: &Config) -> anyhow::Result<()> {
    let path = config.link_secret_path();
    rotate_link_secret(&path).with_context(|| format!("writing `{}`", path.display()))
}

/// The database, its keys, and the administrator.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The database, to be closed at the end.
    pub store: Store,
    /// The keys.
    pub service: KeyService,
    /// The administrator.
    pub admin: AdminService,
}

impl Keys {
    /// Opens the database, creating it if there is none.
    ///
    /// # Errors
    /// When it cannot be opened or migrated.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(Store::open(&config.database_path()).await?))
    }

    /// Opens an existing database.
    ///
    /// # Errors
    /// When it is missing, or cannot be opened or migrated.
    pub async fn open_existing(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(Store::open_existing(&config.database_path()).await?))
    }

    fn of(store: Store) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let service = KeyService::new(store.clone(), Arc::clone(&clock));
        let admin = AdminService::new(store.clone(), clock);
        Self { store, service, admin }
    }

    /// Refuses a scope with an unknown namespace.
    ///
    /// # Errors
    /// For such a scope, or when the database fails.
    pub async fn check_namespaces(&self, scope: &Scope) -> anyhow::Result<()> {
        let Scope::KubernetesNamespaces(ids) = scope else { return Ok(()) };
        match unknown_namespaces(&self.store, ids).await?.first() {
            Some(id) => bail!("there is no namespace with id {id}: the console lists them"),
            None => Ok(()),
        }
    }

    /// A key's usage in the last `days` days, the oldest first.
    ///
    /// # Errors
    /// When there is no such key, or the database fails.
    pub async fn usage(&self, prefix: PublicId, days: u32) -> anyhow::Result<Vec<DayUsage>> {
        let key = self.service.get(prefix).await?;
        let today = Day::of(self.service.now());
        let since = today.before(days.saturating_sub(1));
        let requests = self.service.requests_by_day(key.id, since).await?;
        let work = UsageBuffer::new(self.store.clone()).by_day(key.id, since).await?;
        Ok(by_day(today, days, &requests, &work))
    }

    /// Sets the administrator's password to the configured one, if any.
    ///
    /// # Errors
    /// When the password cannot be stored.
    pub async fn apply_password(&self, config: &Config) -> anyhow::Result<()> {
        let Some(password) = &config.admin_password else { return Ok(()) };
        if self.admin.ensure_password(password, &Actor::Worker).await.context("setting the password")? {
            tracing::info!("the administrator's password is now the configured one; all sessions have ended");
        }
        Ok(())
    }

    /// The administrator's password of the first start: generated when there is neither a password nor a key.
    ///
    /// # Errors
    /// When the password or the keys cannot be read or stored.
    pub async fn first_password(&self) -> anyhow::Result<Option<AdminPassword>> {
        if self.service.count().await? > 0 || self.admin.has_password().await? {
            return Ok(None);
        }
        self.admin.generate_password(&Actor::Worker).await.map(Some).context("making the password")
    }

    /// The demo key of the first start: created when there is no key, so that a new worker can be tried at once. Not
    /// with a configured password: then an operator manages the worker, and its output is kept in a log.
    ///
    /// # Errors
    /// When the keys cannot be read or stored.
    pub async fn demo_key(&self, config: &Config) -> anyhow::Result<Option<CreatedKey>> {
        if config.admin_password.is_some() || self.service.count().await? > 0 {
            return Ok(None);
        }
        let expires_at = Some(self.service.now() + time::Duration::days(DEMO_KEY_DAYS));
        let new = NewKey { name: "demo".into(), scope: Scope::Inference, expires_at, limits: KeyLimits::default() };
        self.service.create(new, &Actor::Worker).await.map(Some).context("making the demo key")
    }
}
