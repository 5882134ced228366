//! The logs of a command: set up from the configuration, finished at its end.

use crate::config::{Config, LogFormat};
use crate::telemetry::{self, Logging};

/// Starts the logs with a filter; spans go to the collector at `otlp_endpoint`, if any.
///
/// # Errors
/// When the filter is invalid, or logging was set up before.
pub(super) fn start_logs(config: &Config, filter: &str, otlp_endpoint: Option<&str>) -> anyhow::Result<Logging> {
    let format = match config.log.format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    Ok(telemetry::start_logs(filter, format, otlp_endpoint)?)
}

/// The logs of a command other than `serve`; finished when dropped.
#[derive(Debug)]
#[must_use = "without it nothing is logged"]
pub struct CommandLogs(Option<Logging>);

impl CommandLogs {
    /// Starts them.
    ///
    /// # Errors
    /// When the filter is invalid, or logging was set up before.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        start_logs(config, &config.log.command_filter, None).map(|logging| Self(Some(logging)))
    }

    /// Logs nothing.
    ///
    /// # Errors
    /// None: it has the type of [`Self::start`].
    pub fn none(_: &Config) -> anyhow::Result<Self> {
        Ok(Self(None))
    }
}

impl Drop for CommandLogs {
    fn drop(&mut self) {
        if let Some(logging) = self.0.take() {
            logging.finish();
        }
    }
}
