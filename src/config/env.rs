//! Every environment variable, once. An empty one counts as absent.
//!
//! Unknown variables that begin with `FLUXSERVE_` are let pass: Kubernetes sets some of its own (`FLUXSERVE_PORT`,
//! `FLUXSERVE_SERVICE_HOST`) for a service of this name, and a worker must not refuse to start for that.

mod hub;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::config::ConfigError;
use crate::config::expand::{Lookup, Unset, at_home, expanded};
use crate::config::hub::{HubConfig, ProxyConfig};
use crate::config::settings::{
    EngineSettings, HttpSettings, HubSettings, KubernetesSettings, Layer, LogSettings, Origin, QueueSettings,
    ResultsSettings, Settings, TelemetrySettings, TlsSettings,
};
use crate::domain::hub_token::HubToken;
use crate::domain::password::AdminPassword;

/// An environment variable and the field of the file that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The field in the file, empty where there is none.
    pub field: &'static str,
    /// What it sets.
    pub meaning: &'static str,
}

const fn variable(name: &'static str, field: &'static str, meaning: &'static str) -> Variable {
    Variable { name, field, meaning }
}

pub(super) const CONFIG_FILE: Variable =
    variable("FLUXSERVE_CONFIG", "", "configuration file, fluxserve.toml by default");
pub(super) const LISTEN: Variable = variable("FLUXSERVE_LISTEN", "listen", "address and port to listen on");
pub(super) const ADMIN_LISTEN: Variable = variable(
    "FLUXSERVE_ADMIN_LISTEN",
    "admin_listen",
    "another address and port for the console and the management routes",
);
pub(super) const METRICS_LISTEN: Variable = variable(
    "FLUXSERVE_METRICS_LISTEN",
    "metrics_listen",
    "address and port of /metrics, 127.0.0.1:9090 by default, or off",
);
pub(super) const DATA_DIR: Variable = variable("FLUXSERVE_DATA_DIR", "data_dir", "folder of database and results");
pub(super) const ADMIN_PASSWORD: Variable =
    variable("FLUXSERVE_ADMIN_PASSWORD", "", "the administrator's password, set at each start; 12 characters or more");
pub(super) const MODELS: Variable =
    variable("FLUXSERVE_MODELS", "models", "models to serve, ID or ID=DIR, separated by commas");
pub(super) const MAX_INPUT_IMAGES: Variable = variable(
    "FLUXSERVE_MAX_INPUT_IMAGES",
    "max_input_images",
    "pictures that requests to a model may bring, ID=0 or ID=1, separated by commas",
);
pub(super) const HUB_DOWNLOAD: Variable =
    variable("FLUXSERVE_HUB_DOWNLOAD", "hub.download", "true: models to serve that are not here are downloaded first");
pub(super) const HF_TOKEN: Variable = variable("HF_TOKEN", "", "access token for the hub of models");
pub(super) const HF_TOKEN_PATH: Variable =
    variable("HF_TOKEN_PATH", "", "file with that token, HF_HOME/token by default");
pub(super) const HF_HOME: Variable =
    variable("HF_HOME", "", "folder of the hub's cache and token, ~/.cache/huggingface by default");
pub(super) const HF_HUB_CACHE: Variable =
    variable("HF_HUB_CACHE", "", "folder of downloaded models, HF_HOME/hub by default");
pub(super) const HF_ENDPOINT: Variable = variable("HF_ENDPOINT", "", "another hub than https://huggingface.co");
pub(super) const HF_HUB_OFFLINE: Variable =
    variable("HF_HUB_OFFLINE", "", "1: nothing is asked of the hub, models come from the cache");
pub(super) const HTTPS_PROXY: Variable = variable("HTTPS_PROXY", "", "proxy on the way to the hub");
pub(super) const HTTP_PROXY: Variable = variable("HTTP_PROXY", "", "the same, for a hub without https");
pub(super) const ALL_PROXY: Variable = variable("ALL_PROXY", "", "the same, where neither of these is set");
pub(super) const NO_PROXY: Variable = variable("NO_PROXY", "", "hosts that are reached without a proxy");
/// Where HF_HOME is by default; everybody knows what they are.
const XDG_CACHE_HOME: Variable = variable("XDG_CACHE_HOME", "", "");
const HOME: Variable = variable("HOME", "", "");
pub(super) const DEVICE: Variable = variable("FLUXSERVE_DEVICE", "device", "auto, cpu, cuda or cuda:N");
pub(super) const ENGINE_OFFLOAD: Variable = variable(
    "FLUXSERVE_ENGINE_OFFLOAD",
    "engine.offload",
    "none, or text: T5 comes to the device for each new prompt only",
);
pub(super) const ENGINE_DETERMINISTIC: Variable = variable(
    "FLUXSERVE_ENGINE_DETERMINISTIC",
    "engine.deterministic",
    "true: the same bits in any company on CUDA, too",
);
pub(super) const ENGINE_KERNELS: Variable = variable(
    "FLUXSERVE_ENGINE_KERNELS",
    "engine.kernels",
    "auto, or portable: on CUDA only the kernels that every device has",
);
pub(super) const ENGINE_PRECISION: Variable = variable(
    "FLUXSERVE_ENGINE_PRECISION",
    "engine.precision",
    "full, or fp8: linear layers in eight bits, which take half the memory, and are lossy",
);
pub(super) const DRAIN_DEADLINE_SECONDS: Variable = variable(
    "FLUXSERVE_DRAIN_DEADLINE_SECONDS",
    "drain_deadline_seconds",
    "time for jobs to finish after the signal to stop",
);
pub(super) const HTTP_BODY_LIMIT_BYTES: Variable =
    variable("FLUXSERVE_HTTP_BODY_LIMIT_BYTES", "http.body_limit_bytes", "largest request body");
pub(super) const HTTP_BODIES_BYTES_MAX: Variable =
    variable("FLUXSERVE_HTTP_BODIES_BYTES_MAX", "http.bodies_bytes_max", "most that large bodies take up at one time");
pub(super) const HTTP_KEY_BODIES_BYTES_MAX: Variable = variable(
    "FLUXSERVE_HTTP_KEY_BODIES_BYTES_MAX",
    "http.key_bodies_bytes_max",
    "most of it that those of one key take up",
);
pub(super) const HTTP_WAIT_SECONDS_MAX: Variable =
    variable("FLUXSERVE_HTTP_WAIT_SECONDS_MAX", "http.wait_seconds_max", "longest wait of one request for its picture");
pub(super) const HTTP_CONNECTIONS_MAX: Variable =
    variable("FLUXSERVE_HTTP_CONNECTIONS_MAX", "http.connections_max", "most connections at one time");
pub(super) const HTTP_HEADER_DEADLINE_SECONDS: Variable = variable(
    "FLUXSERVE_HTTP_HEADER_DEADLINE_SECONDS",
    "http.header_deadline_seconds",
    "time for a request's head to arrive",
);
pub(super) const HTTP_PUBLIC_URL: Variable = variable(
    "FLUXSERVE_HTTP_PUBLIC_URL",
    "http.public_url",
    "where clients reach this worker: https://images.example.org",
);
pub(super) const HTTP_HOSTS: Variable = variable(
    "FLUXSERVE_HTTP_HOSTS",
    "http.hosts",
    "names by which clients reach this worker, separated by commas, or * for any",
);
pub(super) const HTTP_CORS_ORIGINS: Variable = variable(
    "FLUXSERVE_HTTP_CORS_ORIGINS",
    "http.cors_origins",
    "sites whose pages may use the API: https://images.example.org, separated by commas, or *",
);
pub(super) const HTTP_TRUSTED_PROXIES: Variable = variable(
    "FLUXSERVE_HTTP_TRUSTED_PROXIES",
    "http.trusted_proxies",
    "networks of proxies that say for whom they ask: 10.0.0.0/8, separated by commas",
);
pub(super) const QUEUE_JOBS_MAX: Variable =
    variable("FLUXSERVE_QUEUE_JOBS_MAX", "queue.jobs_max", "most jobs waiting or running");
pub(super) const RESULTS_RETENTION_SECONDS: Variable =
    variable("FLUXSERVE_RESULTS_RETENTION_SECONDS", "results.retention_seconds", "how long finished pictures stay");
pub(super) const RESULTS_LINK_SECONDS: Variable =
    variable("FLUXSERVE_RESULTS_LINK_SECONDS", "results.link_seconds", "how long a link to a picture is good");
pub(super) const RESULTS_BYTES_MAX: Variable =
    variable("FLUXSERVE_RESULTS_BYTES_MAX", "results.bytes_max", "most disk space for finished pictures");
pub(super) const RESULTS_PROVENANCE: Variable = variable(
    "FLUXSERVE_RESULTS_PROVENANCE",
    "results.provenance",
    "false: a picture's file does not say how it was drawn",
);
pub(super) const LOG_FILTER: Variable =
    variable("FLUXSERVE_LOG_FILTER", "log.filter", "what is logged: info, or warn,fluxserve=debug");
pub(super) const LOG_FORMAT: Variable = variable("FLUXSERVE_LOG_FORMAT", "log.format", "text or json");
pub(super) const TELEMETRY_OTLP_ENDPOINT: Variable = variable(
    "FLUXSERVE_TELEMETRY_OTLP_ENDPOINT",
    "telemetry.otlp_endpoint",
    "collector to send spans to: http://localhost:4318",
);
pub(super) const TLS_CERTIFICATE: Variable =
    variable("FLUXSERVE_TLS_CERTIFICATE", "tls.certificate", "certificate for https, PEM; read again when it changes");
pub(super) const TLS_PRIVATE_KEY: Variable =
    variable("FLUXSERVE_TLS_PRIVATE_KEY", "tls.private_key", "the certificate's private key, PEM");
pub(super) const KUBERNETES_KUBECONFIG: Variable = variable(
    "FLUXSERVE_KUBERNETES_KUBECONFIG",
    "kubernetes.kubeconfig",
    "the worker's way into a cluster, DATA_DIR/kubernetes/kubeconfig by default",
);
pub(super) const KUBERNETES_IN_CLUSTER: Variable = variable(
    "FLUXSERVE_KUBERNETES_IN_CLUSTER",
    "kubernetes.in_cluster",
    "true: the cluster is the one around this pod",
);
pub(super) const KUBERNETES_SERVER: Variable = variable(
    "FLUXSERVE_KUBERNETES_SERVER",
    "kubernetes.server",
    "where clients find the API server: https://cluster.example.org:6443",
);
pub(super) const KUBERNETES_NAMESPACE: Variable = variable(
    "FLUXSERVE_KUBERNETES_NAMESPACE",
    "kubernetes.namespace",
    "the worker's own namespace there, fluxserve by default",
);
pub(super) const KUBERNETES_AUTO_OPEN: Variable = variable(
    "FLUXSERVE_KUBERNETES_AUTO_OPEN",
    "kubernetes.auto_open",
    "true: the worker opens namespaces itself, and can do all in the cluster",
);
pub(super) const KUBERNETES_ALLOW_EXEC_PLUGINS: Variable = variable(
    "FLUXSERVE_KUBERNETES_ALLOW_EXEC_PLUGINS",
    "kubernetes.allow_exec_plugins",
    "true: programs that the kubeconfig names are run to get in",
);

/// All of them, in the order of the file's fields.
pub const VARIABLES: [Variable; 51] = [
    CONFIG_FILE,
    ADMIN_PASSWORD,
    LISTEN,
    ADMIN_LISTEN,
    METRICS_LISTEN,
    DATA_DIR,
    MODELS,
    MAX_INPUT_IMAGES,
    DEVICE,
    ENGINE_OFFLOAD,
    ENGINE_DETERMINISTIC,
    ENGINE_KERNELS,
    ENGINE_PRECISION,
    DRAIN_DEADLINE_SECONDS,
    HTTP_BODY_LIMIT_BYTES,
    HTTP_BODIES_BYTES_MAX,
    HTTP_KEY_BODIES_BYTES_MAX,
    HTTP_WAIT_SECONDS_MAX,
    HTTP_CONNECTIONS_MAX,
    HTTP_HEADER_DEADLINE_SECONDS,
    HTTP_PUBLIC_URL,
    HTTP_HOSTS,
    HTTP_CORS_ORIGINS,
    HTTP_TRUSTED_PROXIES,
    QUEUE_JOBS_MAX,
    RESULTS_RETENTION_SECONDS,
    RESULTS_LINK_SECONDS,
    RESULTS_BYTES_MAX,
    RESULTS_PROVENANCE,
    LOG_FILTER,
    LOG_FORMAT,
    TELEMETRY_OTLP_ENDPOINT,
    TLS_CERTIFICATE,
    TLS_PRIVATE_KEY,
    KUBERNETES_KUBECONFIG,
    KUBERNETES_IN_CLUSTER,
    KUBERNETES_SERVER,
    KUBERNETES_NAMESPACE,
    KUBERNETES_AUTO_OPEN,
    KUBERNETES_ALLOW_EXEC_PLUGINS,
    HUB_DOWNLOAD,
    HF_TOKEN,
    HF_TOKEN_PATH,
    HF_HOME,
    HF_HUB_CACHE,
    HF_ENDPOINT,
    HF_HUB_OFFLINE,
    HTTPS_PROXY,
    HTTP_PROXY,
    ALL_PROXY,
    NO_PROXY,
];

/// The environment, or in tests something like it.
pub(super) struct Environment<'a> {
    lookup: Lookup<'a>,
}

impl<'a> Environment<'a> {
    pub(super) fn new(lookup: Lookup<'a>) -> Self {
        Self { lookup }
    }

    fn path(&self, variable: &Variable) -> Option<PathBuf> {
        (self.lookup)(variable.name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// The configuration file, where a variable names one.
    pub(super) fn config_file(&self) -> Result<Option<PathBuf>, ConfigError> {
        self.expand(self.path(&CONFIG_FILE), &CONFIG_FILE, Unset::IsRefused, &Origin::Environment)
    }

    /// A path with what `~` and variables in it stand for.
    fn expand(
        &self,
        path: Option<PathBuf>,
        variable: &Variable,
        unset: Unset,
        origin: &Origin,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let path = path.map(|path| expanded(path, self.lookup, unset)).transpose();
        path.map_err(|reason| origin.error(variable, reason))
    }

    /// Puts in what `~` and variables stand for in the paths of a layer, wherever it comes from.
    pub(super) fn expand_paths(&self, layer: &mut Layer) -> Result<(), ConfigError> {
        let Layer { origin, settings } = layer;
        for (path, variable) in [
            (&mut settings.data_dir, &DATA_DIR),
            (&mut settings.tls.certificate, &TLS_CERTIFICATE),
            (&mut settings.tls.private_key, &TLS_PRIVATE_KEY),
            (&mut settings.kubernetes.kubeconfig, &KUBERNETES_KUBECONFIG),
        ] {
            *path = self.expand(path.take(), variable, Unset::IsRefused, origin)?;
        }
        Ok(())
    }

    /// `--data-dir` as a shell leaves it that does not read `~` after an equals sign. Variables it has seen to.
    pub(super) fn flag_at_home(&self, path: PathBuf, flag: &str) -> Result<PathBuf, ConfigError> {
        let Some(text) = path.to_str() else { return Ok(path) };
        let place = format!("flag `{flag}`");
        at_home(text, self.lookup).map(PathBuf::from).map_err(|reason| ConfigError::Value { place, reason })
    }

    fn text(&self, variable: &Variable) -> Result<Option<String>, ConfigError> {
        match (self.lookup)(variable.name).filter(|value| !value.is_empty()).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(Origin::Environment.error(variable, "not valid UTF-8".into())),
        }
    }

    /// The administrator's password. Stands in no file, so it is no setting.
    pub(super) fn admin_password(&self) -> Result<Option<AdminPassword>, ConfigError> {
        let text = self.text(&ADMIN_PASSWORD)?.map(Zeroizing::new);
        let password = text.map(|text| text.parse::<AdminPassword>()).transpose();
        // The reason does not repeat the text.
        password.map_err(|unfit| Origin::Environment.error(&ADMIN_PASSWORD, unfit.to_string()))
    }

    /// Words separated by commas.
    fn words(&self, variable: &Variable) -> Result<Option<Vec<String>>, ConfigError> {
        let list = self.text(variable)?;
        Ok(list.map(|list| list.split(',').map(|word| word.trim().to_owned()).collect()))
    }

    fn number(&self, variable: &Variable) -> Result<Option<u64>, ConfigError> {
        let Some(text) = self.text(variable)? else { return Ok(None) };
        let number = text.trim().parse();
        number
            .map(Some)
            .map_err(|_| Origin::Environment.error(variable, format!("must be a whole number, not `{text}`")))
    }

    /// Numbers by name: `NAME=NUMBER`, separated by commas.
    fn numbers(&self, variable: &Variable) -> Result<Option<BTreeMap<String, u64>>, ConfigError> {
        let Some(text) = self.text(variable)? else { return Ok(None) };
        let number = |entry: &str| {
            let (name, number) = entry.trim().split_once('=')?;
            (!name.is_empty()).then_some((name.to_owned(), number.parse().ok()?))
        };
        let numbers: Option<BTreeMap<_, _>> = text.split(',').map(number).collect();
        let refuse = || Origin::Environment.error(variable, format!("must be like `ID=1`, not `{text}`"));
        numbers.ok_or_else(refuse).map(Some)
    }

    fn yes_or_no(&self, variable: &Variable) -> Result<Option<bool>, ConfigError> {
        let Some(text) = self.text(variable)? else { return Ok(None) };
        let said = text.trim().parse();
        said.map(Some)
            .map_err(|_| Origin::Environment.error(variable, format!("must be `true` or `false`, not `{text}`")))
    }

    /// The hub as the variables describe it that all its tools share, Python's among them. None stands in our file.
    pub(super) fn hub(&self) -> Result<HubConfig, ConfigError> {
        let default = HubConfig::default();
        // Python expands HF_HOME as a whole, also where it comes from XDG_CACHE_HOME, and what is below it once more.
        let read = |path, variable| self.expand(path, variable, Unset::Stays, &Origin::Environment);
        let home = match self.path(&HF_HOME) {
            Some(home) => read(Some(home), &HF_HOME)?,
            None => match self.path(&XDG_CACHE_HOME) {
                Some(own_cache) => read(Some(own_cache.join("huggingface")), &XDG_CACHE_HOME)?,
                None => self.path(&HOME).map(|home| home.join(".cache/huggingface")),
            },
        };
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        // One that is blank is none, as Python's tools have it: so does a template leave it that was not filled in.
        let token = self.text(&HF_TOKEN)?.map(Zeroizing::new).filter(|text| !text.trim().is_empty());
        let token = token.map(|text| text.parse::<HubToken>()).transpose();
        let all = self.proxy(&ALL_PROXY)?;
        Ok(HubConfig {
            endpoint: self.endpoint()?.unwrap_or(default.endpoint),
            // The reason does not repeat the text.
            token: token.map_err(|unfit| Origin::Environment.error(&HF_TOKEN, unfit.to_string()))?,
            token_file: read(self.path(&HF_TOKEN_PATH).or_else(|| below_home("token")), &HF_TOKEN_PATH)?,
            cache_dir: read(self.path(&HF_HUB_CACHE).or_else(|| below_home("hub")), &HF_HUB_CACHE)?,
            is_offline: self.is_set(&HF_HUB_OFFLINE)?,
            proxy: ProxyConfig {
                https: self.proxy(&HTTPS_PROXY)?.or_else(|| all.clone()),
                http: self.proxy(&HTTP_PROXY)?.or(all),
                except: self.either_case(&NO_PROXY)?,
            },
            ..default
        })
    }

    /// All variables as one layer of settings.
    pub(super) fn read(&self) -> Result<Layer, ConfigError> {
        let settings = Settings {
            listen: self.text(&LISTEN)?,
            admin_listen: self.text(&ADMIN_LISTEN)?,
            metrics_listen: self.text(&METRICS_LISTEN)?,
            data_dir: self.path(&DATA_DIR),
            models: self.words(&MODELS)?,
            max_input_images: self.numbers(&MAX_INPUT_IMAGES)?,
            device: self.text(&DEVICE)?,
            engine: EngineSettings {
                offload: self.text(&ENGINE_OFFLOAD)?,
                deterministic: self.yes_or_no(&ENGINE_DETERMINISTIC)?,
                kernels: self.text(&ENGINE_KERNELS)?,
                precision: self.text(&ENGINE_PRECISION)?,
            },
            drain_deadline_seconds: self.number(&DRAIN_DEADLINE_SECONDS)?,
            http: HttpSettings {
                body_limit_bytes: self.number(&HTTP_BODY_LIMIT_BYTES)?,
                bodies_bytes_max: self.number(&HTTP_BODIES_BYTES_MAX)?,
                key_bodies_bytes_max: self.number(&HTTP_KEY_BODIES_BYTES_MAX)?,
                wait_seconds_max: self.number(&HTTP_WAIT_SECONDS_MAX)?,
                connections_max: self.number(&HTTP_CONNECTIONS_MAX)?,
                header_deadline_seconds: self.number(&HTTP_HEADER_DEADLINE_SECONDS)?,
                public_url: self.text(&HTTP_PUBLIC_URL)?,
                hosts: self.words(&HTTP_HOSTS)?,
                cors_origins: self.words(&HTTP_CORS_ORIGINS)?,
                trusted_proxies: self.words(&HTTP_TRUSTED_PROXIES)?,
            },
            queue: QueueSettings { jobs_max: self.number(&QUEUE_JOBS_MAX)? },
            results: ResultsSettings {
                retention_seconds: self.number(&RESULTS_RETENTION_SECONDS)?,
                link_seconds: self.number(&RESULTS_LINK_SECONDS)?,
                bytes_max: self.number(&RESULTS_BYTES_MAX)?,
                provenance: self.yes_or_no(&RESULTS_PROVENANCE)?,
            },
            log: LogSettings { filter: self.text(&LOG_FILTER)?, format: self.text(&LOG_FORMAT)? },
            telemetry: TelemetrySettings { otlp_endpoint: self.text(&TELEMETRY_OTLP_ENDPOINT)? },
            tls: TlsSettings { certificate: self.path(&TLS_CERTIFICATE), private_key: self.path(&TLS_PRIVATE_KEY) },
            kubernetes: KubernetesSettings {
                kubeconfig: self.path(&KUBERNETES_KUBECONFIG),
                in_cluster: self.yes_or_no(&KUBERNETES_IN_CLUSTER)?,
                server: self.text(&KUBERNETES_SERVER)?,
                namespace: self.text(&KUBERNETES_NAMESPACE)?,
                auto_open: self.yes_or_no(&KUBERNETES_AUTO_OPEN)?,
                allow_exec_plugins: self.yes_or_no(&KUBERNETES_ALLOW_EXEC_PLUGINS)?,
            },
            hub: HubSettings { download: self.yes_or_no(&HUB_DOWNLOAD)? },
        };
        Ok(Layer { origin: Origin::Environment, settings })
    }
}
