//! Wires all parts together: the only place that knows everything.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use crate::auth::{CreatedKey, KeyService, NewKey};
use crate::config::{Config, ModelSource};
use crate::domain::clock::SystemClock;
use crate::domain::device::DeviceChoice;
use crate::domain::scope::Scope;
use crate::domain::spec::GenerateParams;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// A picture to be drawn from the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The model that draws it.
    pub model: ModelSource,
    /// Where to draw it.
    pub device: DeviceChoice,
    /// What to draw, not yet checked against the model's card.
    pub params: GenerateParams,
    /// The PNG file to write.
    pub output: PathBuf,
}

/// The database and the keys in it.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The database, to be closed at the end.
    pub store: Store,
    /// The keys.
    pub service: KeyService,
}

impl Keys {
    /// Opens the database, making it where there is none.
    ///
    /// # Errors
    /// When it cannot be opened or brought up to date.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(Store::open(&config.database_path()).await?))
    }

    /// Opens a database that must be there.
    ///
    /// # Errors
    /// When it is not, or cannot be opened or brought up to date.
    pub async fn open_existing(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(Store::open_existing(&config.database_path()).await?))
    }

    fn of(store: Store) -> Self {
        let service = KeyService::new(store.clone(), Arc::new(SystemClock));
        Self { store, service }
    }

    /// The key of the first start: made when there is no key at all, so that a new worker can be tried at once.
    ///
    /// # Errors
    /// When the keys are not available.
    pub async fn demo_key(&self) -> anyhow::Result<Option<CreatedKey>> {
        if self.service.count().await? > 0 {
            return Ok(None);
        }
        let new = NewKey { name: "demo".into(), scope: Scope::Inference, expires_at: None };
        self.service.create(new).await.map(Some).context("making the demo key")
    }
}

/// Runs the worker until `shutdown` is requested and what it has accepted is done. What a person should see at the start
/// goes to `out`.
///
/// # Errors
/// When it cannot start, or cannot finish within the deadline.
#[expect(clippy::unused_async, reason = "waits for the server, which is not there yet")]
pub async fn serve(_config: Config, _shutdown: Shutdown, _out: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("`serve` is not there yet")
}

/// Draws one picture and writes it. Notes for a person go to `notes`.
///
/// # Errors
/// When the model cannot be loaded, does not draw what is asked for, or the file cannot be written.
pub fn generate(_config: &Config, _request: GenerateRequest, _notes: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("`generate` is not there yet")
}

/// Writes which models there are and where.
///
/// # Errors
/// When a catalog card cannot be read.
pub fn list_models(_config: &Config, _out: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("`models list` is not there yet")
}

/// Writes what a checkpoint has and lacks, tensor by tensor.
///
/// # Errors
/// When the checkpoint is not complete.
pub fn check_model(_config: &Config, _model: &ModelSource, _out: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("`models check` is not there yet")
}

/// Writes what is wrong with device, memory, database and models, and how to mend it.
///
/// # Errors
/// When something is wrong that keeps the worker from serving.
#[expect(clippy::unused_async, reason = "asks the database, which is not there yet")]
pub async fn doctor(_config: &Config, _out: &mut dyn Write) -> anyhow::Result<()> {
    anyhow::bail!("`doctor` is not there yet")
}
