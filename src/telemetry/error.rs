//! Errors of the setup.

use std::io;

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form `level` or `target=level,…`.
    #[error("the log filter `{0}` cannot be read; use for example `info` or `warn,fluxserve=debug`")]
    Filter(String),
    /// Spans are to be sent, and this build cannot send them.
    #[error(
        "cannot send spans to `{endpoint}`: this program was built without OTLP; build it with \
         `cargo build --release --features otlp`, or set no OTLP endpoint"
    )]
    NoExporter {
        /// The endpoint.
        endpoint: String,
    },
    /// The endpoint is not usable.
    #[error("cannot send spans to `{endpoint}`: {reason}")]
    Exporter {
        /// The endpoint.
        endpoint: String,
        /// The cause.
        reason: String,
    },
    /// Another subscriber is installed.
    #[error("logging is set up already")]
    AlreadySet,
    /// The system gives no thread.
    #[error("cannot start the thread that writes the log")]
    NoThread(#[from] io::Error),
}
