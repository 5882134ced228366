//! The configuration, checked, and its defaults.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::hub::HubConfig;
use crate::config::moderation::ModerationConfig;
use crate::config::names::{CorsOrigins, HostNames, MetricsListen};
use crate::config::public_url::PublicUrl;
use crate::domain::byte_size::ByteSize;
use crate::domain::device::{DeviceChoice, Devices, EngineSettings, KernelFaults, Kernels, Offload};
use crate::domain::ids::ModelId;
use crate::domain::model_source::ModelSource;
use crate::domain::money::Prices;
use crate::domain::namespace::NamespaceName;
use crate::domain::networks::Networks;
use crate::domain::password::AdminPassword;
use crate::domain::precision::Precision;
use crate::domain::webhook::AllowedHosts;
use crate::domain::weight_storage::WeightStorage;

/// How many threads may compute on the CPU.
pub const THREADS: RangeInclusive<u64> = 1..=1024;

/// The model that is compiled into the program.
pub const DEFAULT_MODEL: &str = "fluxserve/flux-shapes";

/// The configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Address of the HTTP listener.
    pub listen: SocketAddr,
    /// Address of a separate listener for the console and the management routes. `None`: they are on `listen`.
    pub admin_listen: Option<SocketAddr>,
    /// Address of the metrics listener, plain http.
    pub metrics_listen: MetricsListen,
    /// Certificate and key of https. `None`: plain http.
    pub tls: Option<TlsConfig>,
    /// Folder of the database and the results.
    pub data_dir: PathBuf,
    /// The models to serve: at least one, without duplicates.
    pub models: Vec<ModelSource>,
    /// Maximum input images of a request by model, where it overrides the card.
    pub max_input_images: BTreeMap<ModelId, usize>,
    /// The devices, each with an engine.
    pub device: Devices,
    /// How engines are built.
    pub engine: EngineConfig,
    /// The administrator's password, from the environment only. `None`: the one in the database.
    pub admin_password: Option<AdminPassword>,
    /// Longest time for accepted jobs to finish after the signal to stop.
    pub drain_deadline_seconds: u64,
    /// Limits of HTTP requests.
    pub http: HttpConfig,
    /// Limits of the queue.
    pub queue: QueueConfig,
    /// Limits of stored results.
    pub results: ResultsConfig,
    /// LoRAs.
    pub loras: LoraConfig,
    /// What work costs. `None`: nothing is charged for.
    pub prices: Option<Prices>,
    /// Whether the routes of AUTOMATIC1111's API are served.
    pub sdapi: bool,
    /// The operator's moderation.
    pub moderation: ModerationConfig,
    /// The log.
    pub log: LogConfig,
    /// Export to collectors.
    pub telemetry: TelemetryConfig,
    /// Webhooks.
    pub webhooks: WebhooksConfig,
    /// The cluster that keys give kubectl access to.
    pub kubernetes: KubernetesConfig,
    /// Source and target of model downloads.
    pub hub: HubConfig,
}

/// Certificate and key of https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
}

/// How engines are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineConfig {
    /// Part of a model that does not stay on its device.
    pub offload: Offload,
    /// Whether images are batch-invariant even where that is slower.
    pub is_deterministic: bool,
    /// Kernels of attention and convolutions on CUDA.
    pub kernels: Kernels,
    /// Precision of the linear layers in a model's blocks.
    pub precision: Precision,
    /// How a model's weights are kept in memory.
    pub weights: WeightStorage,
    /// Maximum memory that an engine may plan with. `None`: what is free.
    pub memory_budget: Option<ByteSize>,
    /// Whether steps that are alike are recorded as CUDA graphs. Experimental, so it is a flag alone.
    pub uses_graphs: bool,
    /// Threads that compute on the CPU, of all engines together. `None`: one for each core.
    pub threads: Option<u64>,
}

/// Limits of HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Largest request body.
    pub body_limit_bytes: u64,
    /// Maximum bytes that all large bodies take up at the same time.
    pub bodies_bytes_max: u64,
    /// Maximum bytes of it for one key, which may always have one body.
    pub key_bodies_bytes_max: u64,
    /// Longest time that a request may wait for its image.
    pub wait_seconds_max: u64,
    /// Maximum concurrent connections.
    pub connections_max: u64,
    /// Longest time for a request's head to arrive.
    pub header_deadline_seconds: u64,
    /// URL of this worker for clients. `None`: http and the `Host` header.
    pub public_url: Option<PublicUrl>,
    /// Host names that requests may have, beside those of this machine and of `public_url`. `None`: no others for clients on
    /// this machine, and any for clients elsewhere.
    pub hosts: Option<HostNames>,
    /// The other sites whose pages may use the API with a key.
    pub cors_origins: CorsOrigins,
    /// The proxies that are trusted to name the client.
    pub trusted_proxies: Networks,
}

/// Limits of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// Maximum pending and running jobs.
    pub jobs_max: u64,
}

/// Limits of stored results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultsConfig {
    /// How long images are stored.
    pub retention_seconds: u64,
    /// How long a link to an image works without a key.
    pub link_seconds: u64,
    /// Maximum disk space of images; the oldest go first.
    pub bytes_max: u64,
    /// Whether an image's file records how it was generated; never the prompt.
    pub provenance: bool,
}

/// LoRAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraConfig {
    /// Largest file.
    pub file_bytes_max: u64,
    /// Whether a prompt may ask for LoRAs: `<lora:NAME:0.8>`.
    pub in_prompt: bool,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Events to log, in the syntax of tracing's `EnvFilter`: `info`, `warn,fluxserve=debug`.
    pub filter: String,
    /// The same for commands other than `serve`. By default warnings only, so that progress bars stay readable.
    pub command_filter: String,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Export to collectors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Collector of spans, by OTLP over HTTP: scheme, host and port. `None`: none.
    pub otlp_endpoint: Option<String>,
}

/// Webhooks: messages to receivers that keys' holders name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhooksConfig {
    /// Whether there are any.
    pub enabled: bool,
    /// Whether receivers without https are allowed.
    pub allow_http: bool,
    /// Receivers that are allowed although they are in a private network.
    pub allowed_hosts: AllowedHosts,
    /// Whether no others are allowed.
    pub only_allowed_hosts: bool,
}

/// The cluster that keys give kubectl access to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The worker's access. `None`: [`Config::own_kubeconfig`], if it exists, or no access.
    pub kubeconfig: Option<PathBuf>,
    /// Whether it is the cluster that the worker runs in.
    pub in_cluster: bool,
    /// Address of the API server for clients, if it differs from the worker's. Begins with `https://`.
    pub server: Option<String>,
    /// The worker's own namespace there.
    pub namespace: NamespaceName,
    /// Whether the worker opens namespaces by itself, which takes an administrator's rights.
    pub auto_open: bool,
    /// Whether the kubeconfig's credential plugins may run.
    pub allow_exec_plugins: bool,
}

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A text that is no log format.
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
            models: vec![ModelSource::new(ModelId::new(DEFAULT_MODEL), None)],
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
            loras: LoraConfig { file_bytes_max: 2 * 1024 * 1024 * 1024, in_prompt: false },
            prices: None,
            sdapi: false,
            moderation: ModerationConfig::default(),
            // The worker logs failures of the cluster itself; its client would log them again.
            log: LogConfig {
                filter: "info,kube_client=off".into(),
                command_filter: "fluxserve=warn".into(),
                format: LogFormat::Text,
            },
            telemetry: TelemetryConfig::default(),
            webhooks: WebhooksConfig {
                enabled: true,
                allow_http: false,
                allowed_hosts: AllowedHosts::default(),
                only_allowed_hosts: false,
            },
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
    /// How the engine on `device` is built.
    #[must_use]
    pub fn engine_settings(&self, device: DeviceChoice) -> EngineSettings {
        let EngineConfig {
            offload,
            is_deterministic,
            kernels,
            precision,
            weights,
            memory_budget,
            uses_graphs,
            threads: _,
        } = self.engine;
        EngineSettings {
            device,
            offload,
            is_deterministic,
            kernels,
            kernel_faults: KernelFaults::default(),
            precision,
            weights,
            memory_budget,
            uses_graphs,
        }
    }

    /// The database's file.
    #[must_use]
    pub fn database_path(&self) -> PathBuf {
        self.data_dir.join("fluxserve.db")
    }

    /// The folder of the worker's own access to a cluster, made by `fluxserve kubernetes connect`.
    #[must_use]
    pub fn kubernetes_dir(&self) -> PathBuf {
        self.data_dir.join("kubernetes")
    }

    /// The worker's own kubeconfig, in that folder.
    #[must_use]
    pub fn own_kubeconfig(&self) -> PathBuf {
        self.kubernetes_dir().join("kubeconfig")
    }

    /// The secret of links to images. Not in the database: a copy of that must not open images.
    #[must_use]
    pub fn link_secret_path(&self) -> PathBuf {
        self.data_dir.join("links.secret")
    }

    /// The secret of webhooks. Not in the database: a copy of that must not sign anything.
    #[must_use]
    pub fn webhook_secret_path(&self) -> PathBuf {
        self.data_dir.join("webhooks.secret")
    }

    /// The folder of LoRAs.
    #[must_use]
    pub fn loras_dir(&self) -> PathBuf {
        self.data_dir.join("loras")
    }

    /// The folder of images that keys have uploaded.
    #[must_use]
    pub fn uploads_dir(&self) -> PathBuf {
        self.data_dir.join("uploads")
    }

    /// The folder of finished images.
    #[must_use]
    pub fn results_dir(&self) -> PathBuf {
        self.data_dir.join("results")
    }
}
