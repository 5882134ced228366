//! Every environment variable, once. An empty one counts as absent.
//!
//! Unknown variables that begin with `FLUXSERVE_` are ignored: Kubernetes sets some (`FLUXSERVE_PORT`,
//! `FLUXSERVE_SERVICE_HOST`) for a service of this name, and the worker must still start.

mod hub;
mod password;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::config::ConfigError;
use crate::config::expand::{Lookup, Unset, at_home, expanded};
use crate::config::hub::{HubConfig, ProxyConfig};
use crate::config::settings::{
    EngineSettings, HttpSettings, HubSettings, KubernetesSettings, Layer, LogSettings, ModelSetting,
    ModerationSettings, Origin, PriceSettings, QueueSettings, ResultsSettings, SecretText, Settings, TelemetrySettings,
    TlsSettings, WebhookSettings,
};
use crate::domain::hub_token::HubToken;

pub use variables::*;

/// The environment, or a stand-in for it in tests.
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

    /// The configuration file, if a variable names one.
    pub(super) fn config_file(&self) -> Result<Option<PathBuf>, ConfigError> {
        self.own_path(&CONFIG_FILE)
    }

    /// A path, expanded, of a variable of this program.
    fn own_path(&self, variable: &Variable) -> Result<Option<PathBuf>, ConfigError> {
        self.expand(self.path(variable), variable, Unset::IsRefused, &Origin::Environment)
    }

    /// Expands `~` and variables in a path.
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

    /// Expands `~` and variables in the paths of a layer from any source.
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

    /// Expands `~` in `--data-dir=~…`, which shells leave as it is. They expand variables themselves.
    pub(super) fn flag_at_home(&self, path: PathBuf, flag: &str) -> Result<PathBuf, ConfigError> {
        let Some(text) = path.to_str() else { return Ok(path) };
        let place = format!("flag `{flag}`");
        at_home(text, self.lookup).map(PathBuf::from).map_err(|reason| ConfigError::Value { place, reason })
    }

    fn text(&self, variable: &Variable) -> Result<Option<String>, ConfigError> {
        let value =
            (self.lookup)(variable.name).filter(|value| !value.is_empty()).map(OsString::into_string).transpose();
        value.map_err(|_| Origin::Environment.error(variable, "not valid UTF-8".into()))
    }

    /// Words separated by commas.
    fn words(&self, variable: &Variable) -> Result<Option<Vec<String>>, ConfigError> {
        let list = self.text(variable)?;
        Ok(list.map(|list| list.split(',').map(|word| word.trim().to_owned()).collect()))
    }

    /// A value that `parse` reads. `rule` says what it must be.
    fn parsed<T>(
        &self,
        variable: &Variable,
        rule: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(variable)? else { return Ok(None) };
        let refuse = || Origin::Environment.error(variable, format!("must be {rule}, not `{text}`"));
        parse(text.trim()).ok_or_else(refuse).map(Some)
    }

    fn number(&self, variable: &Variable) -> Result<Option<u64>, ConfigError> {
        self.parsed(variable, "a whole number", |text| text.parse().ok())
    }

    /// Numbers by name: `NAME=NUMBER`, separated by commas.
    fn numbers(&self, variable: &Variable) -> Result<Option<BTreeMap<String, u64>>, ConfigError> {
        let number = |entry: &str| {
            let (name, number) = entry.trim().split_once('=')?;
            (!name.is_empty()).then_some((name.to_owned(), number.parse().ok()?))
        };
        self.parsed(variable, "like `ID=1`", |text| text.split(',').map(number).collect())
    }

    fn boolean(&self, variable: &Variable) -> Result<Option<bool>, ConfigError> {
        self.parsed(variable, "`true` or `false`", |text| text.parse().ok())
    }

    /// The hub, from the variables that all its tools share, including Python's. None is a field of the file.
    pub(super) fn hub(&self) -> Result<HubConfig, ConfigError> {
        let default = HubConfig::default();
        // Python expands HF_HOME, even if it comes from XDG_CACHE_HOME, and paths below it again.
        let read = |path, variable| self.expand(path, variable, Unset::Stays, &Origin::Environment);
        let home = match self.path(&HF_HOME) {
            Some(home) => read(Some(home), &HF_HOME)?,
            None => match self.path(&XDG_CACHE_HOME) {
                Some(own_cache) => read(Some(own_cache.join("huggingface")), &XDG_CACHE_HOME)?,
                None => self.path(&HOME).map(|home| home.join(".cache/huggingface")),
            },
        };
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        // A blank one counts as absent, as with Python's tools: an unfilled template leaves it so.
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
            models: self.words(&MODELS)?.map(|words| words.into_iter().map(ModelSetting::Text).collect()),
            max_input_images: self.numbers(&MAX_INPUT_IMAGES)?,
            device: self.text(&DEVICE)?,
            engine: EngineSettings {
                offload: self.text(&ENGINE_OFFLOAD)?,
                deterministic: self.boolean(&ENGINE_DETERMINISTIC)?,
                kernels: self.text(&ENGINE_KERNELS)?,
                precision: self.text(&ENGINE_PRECISION)?,
                weights: self.text(&ENGINE_WEIGHTS)?,
                memory_budget: self.text(&ENGINE_MEMORY_BUDGET)?,
                threads: self.number(&ENGINE_THREADS)?,
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
                provenance: self.boolean(&RESULTS_PROVENANCE)?,
            },
            lora_bytes_max: self.number(&LORA_BYTES_MAX)?,
            lora_in_prompt: self.boolean(&LORA_IN_PROMPT)?,
            prices: PriceSettings {
                per_megapixel_step: self.text(&PRICES_PER_MEGAPIXEL_STEP)?,
                per_engine_second: self.text(&PRICES_PER_ENGINE_SECOND)?,
                currency: self.text(&PRICES_CURRENCY)?,
            },
            sdapi: self.boolean(&SDAPI)?,
            moderation: self.moderation()?,
            log: LogSettings { filter: self.text(&LOG_FILTER)?, format: self.text(&LOG_FORMAT)? },
            telemetry: TelemetrySettings { otlp_endpoint: self.text(&TELEMETRY_OTLP_ENDPOINT)? },
            webhooks: WebhookSettings {
                enabled: self.boolean(&WEBHOOKS_ENABLED)?,
                allow_http: self.boolean(&WEBHOOKS_ALLOW_HTTP)?,
                allowed_hosts: self.words(&WEBHOOKS_ALLOWED_HOSTS)?,
                only_allowed_hosts: self.boolean(&WEBHOOKS_ONLY_ALLOWED_HOSTS)?,
            },
            tls: TlsSettings { certificate: self.path(&TLS_CERTIFICATE), private_key: self.path(&TLS_PRIVATE_KEY) },
            kubernetes: KubernetesSettings {
                kubeconfig: self.path(&KUBERNETES_KUBECONFIG),
                in_cluster: self.boolean(&KUBERNETES_IN_CLUSTER)?,
                server: self.text(&KUBERNETES_SERVER)?,
                namespace: self.text(&KUBERNETES_NAMESPACE)?,
                auto_open: self.boolean(&KUBERNETES_AUTO_OPEN)?,
                allow_exec_plugins: self.boolean(&KUBERNETES_ALLOW_EXEC_PLUGINS)?,
            },
            hub: HubSettings { download: self.boolean(&HUB_DOWNLOAD)? },
        };
        Ok(Layer { origin: Origin::Environment, settings })
    }

    fn moderation(&self) -> Result<ModerationSettings, ConfigError> {
        Ok(ModerationSettings {
            url: self.text(&MODERATION_URL)?,
            before: self.boolean(&MODERATION_BEFORE)?,
            after: self.boolean(&MODERATION_AFTER)?,
            on_failure: self.text(&MODERATION_ON_FAILURE)?,
            timeout_seconds: self.number(&MODERATION_TIMEOUT_SECONDS)?,
            secret: self.text(&MODERATION_SECRET)?.map(SecretText::from),
        })
    }
}
