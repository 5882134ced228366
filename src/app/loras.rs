//! The catalog of LoRAs in the data folder, and `loras inspect` and `loras download`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::Keys;
use super::fetching::ProgressLines;
use super::hub::download_files;
use super::lora_report::inspect;
use super::models::files_of;
use crate::auth::Actor;
use crate::config::Config;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::model_source::ModelSource;
use crate::engine::{Adaptable, Adapter};
use crate::hub::Progress;
use crate::loras::{Added, HubFile, LoraCatalog, LoraError, LoraParts};
use crate::store::Store;

/// What the name of a LoRA's file has.
const WEIGHTS: &str = ".safetensors";

/// Writes what an adapter changes, what in its file is not used and why, and what the file says of itself. It is compared with
/// a model, or with FLUX.1-dev. All of its numbers are read once.
///
/// # Errors
/// When it cannot be used, or the model is incomplete.
pub fn inspect_lora(
    config: &Config,
    file: &Path,
    model: Option<&ModelSource>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let model = match model {
        None => Adaptable::flux_dev(),
        Some(model) => {
            let is_named = model.directory.is_some() || !model.parts.is_empty();
            let configured = config.models.iter().find(|source| source.id == model.id && !is_named);
            Adaptable::of(&files_of(config, configured.unwrap_or(model))?)?
        }
    };
    let adapter = Adapter::open(file, &model)?;
    let report = adapter.report();
    writeln!(out, "{report}")?;
    if let Some(metadata) = &report.metadata {
        writeln!(out, "{metadata}")?;
    }
    Ok(adapter.check()?)
}

/// The database, and the catalog of LoRAs in it.
#[derive(Debug, Clone)]
pub struct Loras {
    /// The database, to be closed at the end.
    pub store: Store,
    /// The catalog.
    pub catalog: LoraCatalog,
}

impl Loras {
    /// Opens the database, creating it if there is none.
    ///
    /// # Errors
    /// When it cannot be opened or migrated.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(config, Keys::open(config).await?.store))
    }

    /// Opens an existing database.
    ///
    /// # Errors
    /// When it is missing, or cannot be opened or migrated.
    pub async fn open_existing(config: &Config) -> anyhow::Result<Self> {
        Ok(Self::of(config, Keys::open_existing(config).await?.store))
    }

    /// Adds a copy of a file, by an operator.
    ///
    /// # Errors
    /// When it cannot be used, or not be stored.
    pub async fn add(&self, file: &Path, name: Option<String>) -> Result<Added, LoraError> {
        self.catalog.add_file(file, name, &Actor::CommandLine).await
    }

    fn of(config: &Config, store: Store) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self { catalog: lora_catalog(config, &store, &clock), store }
    }
}

/// The catalog. A file that is added has to fit one of the configured models, or FLUX.1-dev.
fn lora_catalog(config: &Config, store: &Store, clock: &Arc<dyn Clock>) -> LoraCatalog {
    // Kept as long as the worker runs, so without its secret.
    let configured = Config { admin_password: None, ..config.clone() };
    let of_hub = configured.clone();
    let inspect = move |path: &Path| inspect(path, &models_of(&configured)).map_err(|error| error.to_string());
    let fetch = move |file: HubFile| {
        let progress = ProgressLines::new(|line: &str| tracing::info!("{line}"));
        let fetching = download_lora(&of_hub, file, &progress);
        tokio::runtime::Handle::current().block_on(fetching).map_err(|error| format!("{error:#}"))
    };
    LoraCatalog::new(LoraParts {
        store: store.clone(),
        folder: config.loras_dir(),
        inspect: Arc::new(inspect),
        fetch: Arc::new(fetch),
        clock: Arc::clone(clock),
        file_bytes_max: config.loras.file_bytes_max,
    })
}

/// The catalog of a worker that starts: without what a crash has left.
pub(super) async fn swept_lora_catalog(config: &Config, store: &Store, clock: &Arc<dyn Clock>) -> LoraCatalog {
    let catalog = lora_catalog(config, store, clock);
    if let Err(error) = catalog.sweep().await {
        tracing::warn!(?error, "looking for what interrupted uploads of LoRAs have left failed");
    }
    catalog
}

/// The models that LoRAs are compared with. Those that are not here cannot be, and LoRAs are for FLUX.1-dev above all.
fn models_of(config: &Config) -> Vec<Adaptable> {
    let files = config.models.iter().filter_map(|source| files_of(config, source).ok());
    let configured = files.filter_map(|files| Adaptable::of(&files).ok());
    configured.chain([Adaptable::flux_dev()]).collect()
}

/// Downloads a LoRA's file into the cache that Hugging Face's tools share, and returns its path.
///
/// # Errors
/// In words for the user.
pub async fn download_lora(config: &Config, file: HubFile, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
    let HubFile { repository, revision, file } = file;
    // By a part of its name: without any, a pipeline would be downloaded completely.
    let files = (vec![file.unwrap_or_else(|| WEIGHTS.to_owned())], config.loras.file_bytes_max);
    let downloaded = download_files(config, (&repository, revision), files, progress).await;
    let downloaded = downloaded.with_context(|| format!("downloading from `{repository}`"))?;
    match downloaded.chosen.as_slice() {
        [file] => Ok(file.clone()),
        files => bail!("`{repository}` has {} such files: name one with `--file`", files.len()),
    }
}
