//! Configuration: `fluxserve.toml`, then the environment, then flags; the later one wins. Everything has a default, each
//! variable is named once, in `env`, and an error names its file and field, its variable or its flag.

mod env;
mod error;
mod expand;
mod hub;
mod load;
mod moderation;
mod names;
mod own_file;
mod prices;
mod public_url;
mod resolve;
mod settings;
mod values;

pub use env::{VARIABLES, Variable};
pub use error::ConfigError;
pub use hub::{DEFAULT_HUB, HubConfig, ProxyConfig, ProxyUrl};
pub use load::{DEFAULT_FILE, Flags};
pub use moderation::ModerationConfig;
pub use names::{CorsOrigins, DEFAULT_METRICS_LISTEN, HostNames, MetricsListen, NotAHost, NotAListener, NotAnOrigin};
pub use public_url::{NotAPublicUrl, PublicUrl};
pub use values::{
    Config, DEFAULT_MODEL, EngineConfig, HttpConfig, KubernetesConfig, LogConfig, LogFormat, LoraConfig, QueueConfig,
    ResultsConfig, THREADS, TelemetryConfig, TlsConfig, UnknownLogFormat, WebhooksConfig,
};

#[cfg(test)]
mod tests;
