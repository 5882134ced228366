//! Logs, spans and metrics: set-up, and every metric's name and unit, once.
//!
//! Owns the subscriber and the recorder of this process. Must not know what is being served; the functions of
//! [`metrics`] take plain numbers and fixed words. Nothing here is ever given a key, a body or a prompt.

pub mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod panics;
pub mod pipe;
pub mod process;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

#[cfg(feature = "otlp")]
use otlp::Exporter;
use pipe::Pipe;

/// Of a program that cannot send spans there is no exporter.
#[cfg(not(feature = "otlp"))]
#[derive(Debug)]
enum Exporter {}

#[cfg(not(feature = "otlp"))]
impl Exporter {
    fn finish(self) {
        match self {}
    }
}

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
    /// Spans are to be sent, and this program has not been built for it.
    #[error(
        "spans cannot be sent to `{endpoint}`: this program was built without it; build it with \
         `cargo build --release --features otlp`, or set no OTLP endpoint"
    )]
    NoExporter {
        /// Where to.
        endpoint: String,
    },
    /// Spans are to be sent to a place that they cannot be sent to.
    #[error("spans cannot be sent to `{endpoint}`: {reason}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// Another subscriber is in place.
    #[error("logging is set up already")]
    AlreadySet,
    /// The system gives no thread that could write.
    #[error("no thread to write the log")]
    NoThread(#[from] io::Error),
}

/// Longest that the end of the process waits for the last lines to be read.
pub const LAST_LINES_DEADLINE: Duration = Duration::from_secs(1);

/// What is to be done for the logs at the end of the process.
#[must_use = "without its end the last lines and spans are lost"]
#[derive(Debug)]
pub struct Logging {
    lines: Pipe,
    exporter: Option<Exporter>,
}

impl Logging {
    /// Sends the spans and writes the lines that have not been; waits a few seconds at most. Blocks.
    pub fn finish(self) {
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
        // Where nobody reads there is nobody to tell.
        let _ = self.lines.flush(LAST_LINES_DEADLINE);
    }
}

/// Starts logging to standard error, so that standard output stays free for results, and sends spans to the collector
/// at `otlp_endpoint` (scheme, host and port), where there is one.
///
/// # Errors
/// When the filter cannot be read, spans cannot be sent, or logging was set up before.
pub fn start_logs(filter: &str, format: LogFormat, otlp_endpoint: Option<&str>) -> Result<Logging, TelemetryError> {
    let directives = EnvFilter::try_new(filter).map_err(|_| TelemetryError::Filter(filter.to_owned()))?;
    let pipe = Pipe::start("log", io::stderr())?;
    let lines = tracing_subscriber::fmt::layer().with_writer(pipe.clone()).with_ansi(io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (spans, exporter) = otlp_endpoint.map(start_export).transpose()?.unzip();
    let layers: Vec<BoxedLayer> = [lines.with_filter(directives).boxed()].into_iter().chain(spans).collect();
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| TelemetryError::AlreadySet)?;
    panics::log_to(pipe.clone(), format);
    Ok(Logging { lines: pipe, exporter })
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

#[cfg(feature = "otlp")]
fn start_export(endpoint: &str) -> Result<(BoxedLayer, Exporter), TelemetryError> {
    let (layer, exporter) = otlp::start(endpoint)?;
    Ok((layer.boxed(), exporter))
}

#[cfg(not(feature = "otlp"))]
fn start_export(endpoint: &str) -> Result<(BoxedLayer, Exporter), TelemetryError> {
    Err(TelemetryError::NoExporter { endpoint: endpoint.to_owned() })
}
