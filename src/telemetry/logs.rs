//! Setup of logs and spans, and their end.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::error::TelemetryError;
use super::format::LogFormat;
#[cfg(feature = "otlp")]
use super::otlp::{self, Exporter};
use super::panics;
use super::pipe::Pipe;

/// Without the feature there is no exporter.
#[cfg(not(feature = "otlp"))]
#[derive(Debug)]
enum Exporter {}

#[cfg(not(feature = "otlp"))]
impl Exporter {
    fn finish(self) {
        match self {}
    }
}

/// Longest wait at the end of the process for a reader of the last lines.
pub const LAST_LINES_DEADLINE: Duration = Duration::from_secs(1);

/// Running logs, to be finished at the end of the process.
#[must_use = "without `finish` the last lines and spans are lost"]
#[derive(Debug)]
pub struct Logging {
    lines: Pipe,
    exporter: Option<Exporter>,
}

impl Logging {
    /// Sends the remaining spans and writes the remaining lines; blocks for a few seconds at most.
    pub fn finish(self) {
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
        // If nothing reads the log, the failure cannot be reported either.
        let _ = self.lines.flush(LAST_LINES_DEADLINE);
    }
}

/// Starts logging to standard error, which leaves standard output to results, and sending spans to the collector at
/// `otlp_endpoint` (scheme, host and port), if any.
///
/// # Errors
/// When the filter is invalid, spans cannot be sent, or logging was set up before.
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
