//! Configuration: `fluxserve.toml`, then the environment, then flags; the later wins. Everything has a default, each
//! variable is named once, in `env`, and an error says in which file, field or variable it stands.

mod env;
mod error;
mod expand;
mod hub;
mod names;
mod own_file;
mod public_url;
mod resolve;
mod settings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use env::{VARIABLES, Variable};
pub use error::ConfigError;
pub use hub::{DEFAULT_HUB, HubConfig, ProxyConfig, ProxyUrl};
pub use names::{CorsOrigins, DEFAULT_METRICS_LISTEN, HostNames, MetricsListen, NotAHost, NotAListener, NotAnOrigin};
pub use public_url::{NotAPublicUrl, PublicUrl};

use self::settings::NamedBy;
use crate::domain::device::{DeviceChoice, Devices, EngineSettings, Kernels, Offload};
use crate::domain::ids::ModelId;
use crate::domain::model_source::ModelSource;
use crate::domain::namespace::NamespaceName;
use crate::domain::networks::Networks;
use crate::domain::password::AdminPassword;
use crate::domain::precision::Precision;

/// Read from the working directory when no other file is named, and only if it is there.
pub const DEFAULT_FILE: &str = "fluxserve.toml";
/// The model that is compiled into the program.
pub const DEFAULT_MODEL: &str = "fluxserve/flux-shapes";

/// All that can be configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen for HTTP.
    pub listen: SocketAddr,
    /// Where to listen for the console and the management routes. `None`: with everything else.
    pub admin_listen: Option<SocketAddr>,
    /// Where to listen for those who want metrics, by plain http.
    pub metrics_listen: MetricsListen,
    /// What https needs. `None`: plain http.
    pub tls: Option<TlsConfig>,
    /// Folder of the database and the results.
    pub data_dir: PathBuf,
    /// The models to serve: at least one, none twice.
    pub models: Vec<ModelSource>,
    /// How many images requests to a model may bring, where that is not what its card says: 0 or 1.
    pub max_input_images: BTreeMap<ModelId, usize>,
    /// Where to draw: an engine on each.
    pub device: Devices,
    /// How engines are built there.
    pub engine: EngineConfig,
    /// The administrator's password. `None`: as it stands in the database. Only the environment can give or name one.
    pub admin_password: Option<AdminPassword>,
    /// How long accepted jobs may take to finish after the signal to stop.
    pub drain_deadline_seconds: u64,
    /// Limits of HTTP requests.
    pub http: HttpConfig,
    /// Limits of the queue.
    pub queue: QueueConfig,
    /// Limits of what is kept.
    pub results: ResultsConfig,
    /// The log.
    pub log: LogConfig,
    /// What is told to collectors.
    pub telemetry: TelemetryConfig,
    /// The cluster that keys let kubectl into.
    pub kubernetes: KubernetesConfig,
    /// Where models are downloaded from, and where to.
    pub hub: HubConfig,
}

/// What https needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and those that vouch for it, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
}

/// How engines are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineConfig {
    /// What of a model does not stay on its device.
    pub offload: Offload,
    /// Whether an image has the same bits in any company also where that costs time.
    pub is_deterministic: bool,
    /// Which kernels compute attention and convolutions on CUDA.
    pub kernels: Kernels,
    /// In which numbers the linear layers of a model's blocks multiply.
    pub precision: Precision,
}

/// Limits of HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Largest request body.
    pub body_limit_bytes: u64,
    /// Most that all large bodies take up at one time.
    pub bodies_bytes_max: u64,
    /// Most of it that those of one key take up. One body it may always have.
    pub key_bodies_bytes_max: u64,
    /// Longest time a client may ask to wait for its image in one request.
    pub wait_seconds_max: u64,
    /// Most connections at one time.
    pub connections_max: u64,
    /// Longest time for a request's head to arrive.
    pub header_deadline_seconds: u64,
    /// Where clients reach this worker. `None`: as the `Host` header says, by http.
    pub public_url: Option<PublicUrl>,
    /// By which names clients may come, beside those of their own machine and of `public_url`. `None`: by no other where
    /// clients are on this machine, and by any where they come from elsewhere.
    pub hosts: Option<HostNames>,
    /// The pages of other sites that may use the API with a key.
    pub cors_origins: CorsOrigins,
    /// The proxies whose word counts for whom they speak.
    pub trusted_proxies: Networks,
}

/// Limits of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// Most jobs waiting or running.
    pub jobs_max: u64,
}

/// Limits of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultsConfig {
    /// How long finished images stay.
    pub retention_seconds: u64,
    /// How long a link to one is good that needs no key.
    pub link_seconds: u64,
    /// How much disk they may take; the oldest go first.
    pub bytes_max: u64,
    /// Whether an image's file says how it was drawn; never the prompt.
    pub provenance: bool,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Which events, in the words of tracing's `EnvFilter`: `info`, `warn,fluxserve=debug`.
    pub filter: String,
    /// In which form.
    pub format: LogFormat,
}

/// What is told to collectors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Where spans are sent to, by OTLP over HTTP: scheme, host and port. `None`: nowhere.
    pub otlp_endpoint: Option<String>,
}

/// The cluster that keys let kubectl into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// How the worker gets there. `None`: by [`Config::own_kubeconfig`], if it is there, or not at all.
    pub kubeconfig: Option<PathBuf>,
    /// Whether it is the cluster around the worker's pod.
    pub in_cluster: bool,
    /// Where clients find the API server, if not where the worker does. Begins with `https://`.
    pub server: Option<String>,
    /// The namespace that the worker owns there.
    pub namespace: NamespaceName,
    /// Whether the worker opens namespaces by itself, for which it needs the rights of an administrator.
    pub auto_open: bool,
    /// Whether programs are run that the kubeconfig names as its user's way in.
    pub allow_exec_plugins: bool,
}

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One object a line.
    Json,
}

/// A word that is no log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log format: use `text` or `json`")]
pub struct UnknownLogFormat;

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            admin_listen: None,
            metrics_listen: MetricsListen::default(),
            tls: None,
            data_dir: PathBuf::from("data"),
            models: vec![ModelSource { id: ModelId::new(DEFAULT_MODEL), directory: None }],
            max_input_images: BTreeMap::new(),
            device: Devices::default(),
            engine: EngineConfig::default(),
            admin_password: None,
            // Below the 30 seconds that Kubernetes gives a pod by default.
            drain_deadline_seconds: 25,
            http: HttpConfig {
                body_limit_bytes: 1024 * 1024,
                bodies_bytes_max: 256 * 1024 * 1024,
                key_bodies_bytes_max: 64 * 1024 * 1024,
                wait_seconds_max: 300,
                connections_max: 512,
                header_deadline_seconds: 15,
                public_url: None,
                hosts: None,
                cors_origins: CorsOrigins::These(Vec::new()),
                trusted_proxies: Networks::default(),
            },
            queue: QueueConfig { jobs_max: 256 },
            results: ResultsConfig {
                retention_seconds: 24 * 60 * 60,
                link_seconds: 60 * 60,
                bytes_max: 10 * 1024 * 1024 * 1024,
                provenance: true,
            },
            // What goes wrong with the cluster is told in words of ours; its client would tell of it once more.
            log: LogConfig { filter: "info,kube_client=off".into(), format: LogFormat::Text },
            telemetry: TelemetryConfig::default(),
            kubernetes: KubernetesConfig {
                kubeconfig: None,
                in_cluster: false,
                server: None,
                namespace: env!("CARGO_PKG_NAME").parse().expect("a DNS label"),
                auto_open: false,
                allow_exec_plugins: false,
            },
            hub: HubConfig::default(),
        }
    }
}

impl Config {
    /// Reads the file and the environment, and lays `flags` over them.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        Self::from_sources(flags, Path::new(DEFAULT_FILE), &|name| std::env::var_os(name))
    }

    fn from_sources(
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
            Some(file) => Some(settings::read_file(file, NamedBy::TheUser)?),
            None if default_file.exists() => Some(settings::read_file(default_file.to_owned(), NamedBy::Nobody)?),
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
        if !flags.models.is_empty() {
            resolve::check_models(&flags.models)
                .map_err(|reason| ConfigError::Value { place: "flag `--model`".into(), reason })?;
            config.models = flags.models;
        }
        Ok(config)
    }

    /// How the engine on `device` is built.
    #[must_use]
    pub fn engine_settings(&self, device: DeviceChoice) -> EngineSettings {
        let EngineConfig { offload, is_deterministic, kernels, precision } = self.engine;
        EngineSettings { device, offload, is_deterministic, kernels, precision }
    }

    /// The database's file.
    #[must_use]
    pub fn database_path(&self) -> PathBuf {
        self.data_dir.join("fluxserve.db")
    }

    /// The folder of the worker's own way into a cluster, as `fluxserve kubernetes connect` makes it.
    #[must_use]
    pub fn kubernetes_dir(&self) -> PathBuf {
        self.data_dir.join("kubernetes")
    }

    /// The worker's own kubeconfig, which stands in that folder.
    #[must_use]
    pub fn own_kubeconfig(&self) -> PathBuf {
        self.kubernetes_dir().join("kubeconfig")
    }

    /// The secret behind links to images. Beside the database, and not in it: no copy of that is to open images.
    #[must_use]
    pub fn link_secret_path(&self) -> PathBuf {
        self.data_dir.join("links.secret")
    }

    /// The folder of finished images.
    #[must_use]
    pub fn results_dir(&self) -> PathBuf {
        self.data_dir.join("results")
    }
}

/// What the command line sets. Absent means: as file and environment say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flags {
    /// Another file than [`DEFAULT_FILE`].
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
    /// See [`EngineConfig::offload`].
    pub offload: Option<Offload>,
    /// See [`EngineConfig::is_deterministic`].
    pub is_deterministic: bool,
    /// See [`EngineConfig::kernels`].
    pub kernels: Option<Kernels>,
    /// See [`EngineConfig::precision`].
    pub precision: Option<Precision>,
    /// Whether [`HubConfig::download`] is on, whatever else is said.
    pub download: bool,
}

#[cfg(test)]
mod tests;
