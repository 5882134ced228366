//! From file, environment and flags to a [`Config`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::env;
use crate::config::error::ConfigError;
use crate::config::hub::HubConfig;
use crate::config::resolve;
use crate::config::settings::{self, NamedBy};
use crate::config::values::Config;
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{Devices, Kernels, Offload};
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;

/// Read from the working directory if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "fluxserve.toml";

/// Settings of the command line. An absent one is left to file and environment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flags {
    /// File to read instead of [`DEFAULT_FILE`].
    pub config_file: Option<PathBuf>,
    /// See [`Config::listen`].
    pub listen: Option<SocketAddr>,
    /// See [`Config::admin_listen`].
    pub admin_listen: Option<SocketAddr>,
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`Config::models`]; empty means absent.
    pub models: Vec<ModelSource>,
    /// See [`Config::device`].
    pub device: Option<Devices>,
    /// See [`crate::config::EngineConfig::offload`].
    pub offload: Option<Offload>,
    /// See [`crate::config::EngineConfig::is_deterministic`].
    pub is_deterministic: bool,
    /// See [`crate::config::EngineConfig::kernels`].
    pub kernels: Option<Kernels>,
    /// See [`crate::config::EngineConfig::precision`].
    pub precision: Option<Precision>,
    /// See [`crate::config::EngineConfig::weights`].
    pub weights: Option<WeightStorage>,
    /// See [`crate::config::EngineConfig::memory_budget`].
    pub memory_budget: Option<ByteSize>,
    /// See [`crate::config::EngineConfig::uses_graphs`].
    pub uses_graphs: bool,
    /// See [`crate::config::EngineConfig::threads`].
    pub threads: Option<u64>,
    /// Whether [`HubConfig::download`] is on, whatever file and environment say.
    pub download: bool,
}

impl Config {
    /// Reads the file and the environment, and applies `flags` over them.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        Self::from_sources(flags, Path::new(DEFAULT_FILE), &|name| std::env::var_os(name))
    }

    pub(super) fn from_sources(
        flags: Flags,
        default_file: &Path,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let environment = env::Environment::new(environment);
        let named_file = match flags.config_file {
            Some(file) => Some(file),
            None => environment.config_file()?,
        };
        let file = match named_file {
            Some(file) => Some(settings::read_file(file, NamedBy::User)?),
            None if default_file.exists() => Some(settings::read_file(default_file.to_owned(), NamedBy::Default)?),
            None => None,
        };
        let mut layers = Vec::from_iter(file);
        layers.push(environment.read()?);
        for layer in &mut layers {
            environment.expand_paths(layer)?;
        }
        let mut config = resolve::resolve(&layers)?;
        config.admin_password = environment.admin_password()?;
        config.hub = HubConfig { download: config.hub.download || flags.download, ..environment.hub()? };
        config.listen = flags.listen.unwrap_or(config.listen);
        config.admin_listen = flags.admin_listen.or(config.admin_listen);
        let data_dir = flags.data_dir.map(|path| environment.flag_at_home(path, "--data-dir")).transpose()?;
        config.data_dir = data_dir.unwrap_or(config.data_dir);
        config.device = flags.device.unwrap_or(config.device);
        config.engine.offload = flags.offload.unwrap_or(config.engine.offload);
        config.engine.is_deterministic |= flags.is_deterministic;
        config.engine.kernels = flags.kernels.unwrap_or(config.engine.kernels);
        config.engine.precision = flags.precision.unwrap_or(config.engine.precision);
        config.engine.weights = flags.weights.unwrap_or(config.engine.weights);
        config.engine.memory_budget = flags.memory_budget.or(config.engine.memory_budget);
        config.engine.uses_graphs |= flags.uses_graphs;
        config.engine.threads = flags.threads.or(config.engine.threads);
        if !flags.models.is_empty() {
            resolve::check_models(&flags.models)
                .map_err(|reason| ConfigError::Value { place: "flag `--model`".into(), reason })?;
            config.models = flags.models;
        }
        Ok(config)
    }
}
