//! Export of spans to a collector: OTLP over HTTP, as protobuf. Owns the connection; must not know what the spans mean.
//!
//! A thread of its own collects and sends the spans, so no other thread waits for the collector. If it is slow or down, spans
//! are dropped and the worker continues.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use rustls::crypto::ring;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::error::TelemetryError;

/// Path below the endpoint, by the protocol.
const PATH: &str = "/v1/traces";
/// Longest time to send a batch, after which it is dropped.
const BATCH_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait at the end of the process for the last batch.
const LAST_BATCH_DEADLINE: Duration = Duration::from_secs(3);
/// Largest response that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Sender of the spans.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

/// The layer that collects spans, and their exporter to `endpoint` (scheme, host and port).
pub(super) fn start<S>(endpoint: &str) -> Result<(impl Layer<S> + use<S>, Exporter), TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{endpoint}{PATH}"))
        .with_timeout(BATCH_DEADLINE)
        .with_http_client(Client::new(endpoint))
        .build()
        .map_err(|error| TelemetryError::Exporter { endpoint: endpoint.to_owned(), reason: error.to_string() })?;
    let name = env!("CARGO_PKG_NAME");
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_service_name(name).with_attribute(version).build();
    let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(name))
        .with_threads(false)
        // Whatever the log's filter: spans of jobs and steps have level debug.
        .with_filter(Targets::new().with_target(name, Level::DEBUG));
    Ok((layer, Exporter(provider)))
}

impl Exporter {
    /// Sends the remaining spans; blocks for [`LAST_BATCH_DEADLINE`] at most.
    pub(super) fn finish(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_BATCH_DEADLINE) {
            tracing::warn!(%error, "cannot send the last spans");
        }
    }
}

/// HTTP client on the thread that collects the spans; sends one request after the other.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    /// Whether the last batch failed: logged once, not for each batch.
    is_failing: AtomicBool,
}

impl Client {
    fn new(endpoint: &str) -> Self {
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
        if endpoint.starts_with("https:") {
            let found = rustls_native_certs::load_native_certs().certs;
            let roots = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
            tls = tls.root_certs(RootCerts::Specific(Arc::new(roots)));
        }
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .timeout_global(Some(BATCH_DEADLINE))
            .http_status_as_error(false)
            // Otherwise environment variables could redirect spans.
            .proxy(None)
            .build();
        Self { agent: config.into(), is_failing: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, mut body) = self.agent.run(request.map(|body| body.to_vec()))?.into_parts();
        let answer = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(parts, answer.into()))
    }

    fn note(&self, problem: Option<String>) {
        let was_failing = self.is_failing.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_failing => tracing::warn!(problem, "cannot send spans: dropping them"),
            None if was_failing => tracing::info!("sending spans again"),
            _ => {}
        }
    }
}

impl HttpClient for Client {
    // The expansion by `async_trait` of `async fn send_bytes(&self, …)`. It blocks only its own thread.
    fn send_bytes<'client, 'answer>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'client: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let answer = self.send(request);
            self.note(match &answer {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(format!("the collector answers {}", answer.status())),
                Err(error) => Some(error.to_string()),
            });
            answer
        })
    }
}
