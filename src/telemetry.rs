//! Logs and metrics: set-up, and every metric's name and unit, once.
//!
//! Owns the subscriber and the recorder of this process. Must not know what is being served; the functions of
//! [`metrics`] take plain numbers and fixed words. Nothing here is ever given a key, a body or a prompt.

pub mod metrics;
pub mod process;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form `level` or `target=level,…`.
    #[error("the log filter `{0}` cannot be read; use for example `info` or `warn,fluxserve=debug`")]
    Filter(String),
    /// Another subscriber is in place.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Starts logging to standard error, so that standard output stays free for results.
///
/// # Errors
/// When the filter cannot be read, or logging was set up before.
pub fn start_logs(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let directives = EnvFilter::try_new(filter).map_err(|_| TelemetryError::Filter(filter.to_owned()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(directives)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let outcome = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|_| TelemetryError::AlreadySet)
}
