//! Settings of one source (the file or the environment), unchecked.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::ConfigError;
use crate::config::env::Variable;
use crate::config::own_file::why_not_ours;

/// The fields of `fluxserve.toml`, all optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) listen: Option<String>,
    pub(super) admin_listen: Option<String>,
    pub(super) metrics_listen: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) models: Option<Vec<ModelSetting>>,
    pub(super) max_input_images: Option<BTreeMap<String, u64>>,
    pub(super) device: Option<String>,
    pub(super) engine: EngineSettings,
    pub(super) drain_deadline_seconds: Option<u64>,
    pub(super) http: HttpSettings,
    pub(super) queue: QueueSettings,
    pub(super) results: ResultsSettings,
    pub(super) lora_bytes_max: Option<u64>,
    pub(super) lora_in_prompt: Option<bool>,
    pub(super) prices: PriceSettings,
    pub(super) sdapi: Option<bool>,
    pub(super) moderation: ModerationSettings,
    pub(super) log: LogSettings,
    pub(super) telemetry: TelemetrySettings,
    pub(super) webhooks: WebhookSettings,
    pub(super) tls: TlsSettings,
    pub(super) kubernetes: KubernetesSettings,
    pub(super) hub: HubSettings,
}

/// A model to serve: `ID` or `ID=PATH`, or a table with its parts.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a model must be `ID`, `ID=PATH`, or a table of id, path, base, text_encoders, vae, controlnets, redux and depth"
)]
pub(super) enum ModelSetting {
    Text(String),
    Table(ModelTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelTable {
    pub(super) id: String,
    pub(super) path: Option<PathBuf>,
    pub(super) base: Option<PathBuf>,
    #[serde(default)]
    pub(super) text_encoders: Vec<PathBuf>,
    pub(super) vae: Option<PathBuf>,
    /// By the names that requests use.
    #[serde(default)]
    pub(super) controlnets: BTreeMap<String, PathBuf>,
    pub(super) redux: Option<PathBuf>,
    pub(super) depth: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EngineSettings {
    pub(super) offload: Option<String>,
    pub(super) deterministic: Option<bool>,
    pub(super) kernels: Option<String>,
    pub(super) precision: Option<String>,
    pub(super) weights: Option<String>,
    pub(super) memory_budget: Option<String>,
    pub(super) threads: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsSettings {
    pub(super) certificate: Option<PathBuf>,
    pub(super) private_key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpSettings {
    pub(super) body_limit_bytes: Option<u64>,
    pub(super) bodies_bytes_max: Option<u64>,
    pub(super) key_bodies_bytes_max: Option<u64>,
    pub(super) wait_seconds_max: Option<u64>,
    pub(super) connections_max: Option<u64>,
    pub(super) header_deadline_seconds: Option<u64>,
    pub(super) public_url: Option<String>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) cors_origins: Option<Vec<String>>,
    pub(super) trusted_proxies: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QueueSettings {
    pub(super) jobs_max: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ResultsSettings {
    pub(super) retention_seconds: Option<u64>,
    pub(super) link_seconds: Option<u64>,
    pub(super) bytes_max: Option<u64>,
    pub(super) provenance: Option<bool>,
}

/// Decimal numbers as text: they are exact.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PriceSettings {
    pub(super) per_megapixel_step: Option<String>,
    pub(super) per_engine_second: Option<String>,
    pub(super) currency: Option<String>,
}

/// A secret as it was read. It is not shown.
#[derive(Deserialize)]
#[serde(from = "String")]
pub(super) struct SecretText(pub(super) Zeroizing<String>);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModerationSettings {
    pub(super) url: Option<String>,
    pub(super) before: Option<bool>,
    pub(super) after: Option<bool>,
    pub(super) on_failure: Option<String>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) secret: Option<SecretText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogSettings {
    pub(super) filter: Option<String>,
    pub(super) format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TelemetrySettings {
    pub(super) otlp_endpoint: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebhookSettings {
    pub(super) enabled: Option<bool>,
    pub(super) allow_http: Option<bool>,
    pub(super) allowed_hosts: Option<Vec<String>>,
    pub(super) only_allowed_hosts: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct KubernetesSettings {
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) in_cluster: Option<bool>,
    pub(super) server: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) auto_open: Option<bool>,
    pub(super) allow_exec_plugins: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HubSettings {
    pub(super) download: Option<bool>,
}

/// Source of settings.
#[derive(Debug)]
pub(super) enum Origin {
    File(PathBuf),
    Environment,
}

impl Origin {
    /// An error in the setting of `variable`, named as in this source.
    pub(super) fn error(&self, variable: &Variable, reason: String) -> ConfigError {
        let place = match self {
            Self::File(path) => format!("configuration file `{}`, field `{}`", path.display(), variable.field),
            Self::Environment => format!("environment variable `{}`", variable.name),
        };
        ConfigError::Value { place, reason }
    }
}

/// The settings of one origin.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    pub(super) settings: Settings,
}

/// How a file was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// By the user, who knows its owner.
    User,
    /// By default, in the working directory, which may belong to another user. It could run programs and leak keys.
    Default,
}

/// Reads a file that is expected to exist.
pub(super) fn read_file(path: PathBuf, named_by: NamedBy) -> Result<Layer, ConfigError> {
    let mut text = String::new();
    let read = File::open(&path).and_then(|mut file| {
        // Checks the open file: the name may lead to another one by the time that it is read.
        let reason = match named_by {
            NamedBy::User => None,
            NamedBy::Default => why_not_ours(&file, &path.display().to_string())?,
        };
        file.read_to_string(&mut text)?;
        Ok(reason)
    });
    match read {
        Ok(None) => {}
        Ok(Some(reason)) => return Err(ConfigError::NotOurs { path, reason }),
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
    }
    match toml::from_str(&text) {
        Ok(settings) => Ok(Layer { origin: Origin::File(path), settings }),
        Err(error) => Err(ConfigError::Syntax { path, message: error.to_string().trim_end().to_owned() }),
    }
}
