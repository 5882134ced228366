//! `serve`: from the configuration to a worker that answers, and back down again.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use super::Keys;
use super::models::catalog_of;
use crate::auth::Authenticator;
use crate::catalog::{Catalog, warm_up_spec};
use crate::config::{Config, LogFormat};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::device::DeviceChoice;
use crate::domain::engine::{EngineError, StepEngine};
use crate::domain::ids::ModelId;
use crate::domain::model::ModelFiles;
use crate::engine::{self, FluxEngine};
use crate::http::{self, ConnectionLimits, HttpParts, HttpSettings};
use crate::jobs::{JobService, JobSettings, ServiceParts};
use crate::queue::{EngineFactory, EngineState, Queue, QueueSettings};
use crate::shutdown::{self, Shutdown};
use crate::telemetry;

/// Attempts to build an engine before it is given up.
const ENGINE_BUILDS_MAX: u32 = 3;

/// Wait before an engine is built a second time.
const ENGINE_REBUILD_DELAY: Duration = Duration::from_secs(1);

/// How often finished jobs are looked through for those whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// What a request may take beyond the longest wait it can ask for.
const REQUEST_MARGIN: Duration = Duration::from_mins(1);

/// What open connections get to hear their last answer, after all jobs are done.
const CONNECTIONS_CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the worker until `shutdown` is requested and what it has accepted is done. What a person should see at the start
/// goes to `out`.
///
/// # Errors
/// When it cannot start.
pub async fn serve(config: Config, shutdown: Shutdown, out: &mut dyn Write) -> anyhow::Result<()> {
    start_logs(&config)?;
    let metrics = telemetry::metrics::install();
    let catalog = Arc::new(catalog_of(&config)?);
    for (card, files) in catalog.served() {
        let inspection = engine::inspect(&files);
        if !inspection.is_sound() {
            bail!("the model `{}` cannot be served:\n{inspection}", card.id);
        }
    }
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}: choose another address with --listen", config.listen))?;
    let keys = Keys::open(&config).await?;
    let demo_key = keys.demo_key().await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authenticator = Authenticator::new(keys.store.clone(), Arc::clone(&clock))?;
    let queues = start_engines(&config, &catalog)?;
    let parts = ServiceParts {
        store: keys.store.clone(),
        catalog: Arc::clone(&catalog),
        queues: queues.clone(),
        clock,
        settings: job_settings(&config),
    };
    let jobs = JobService::start(parts).await?;
    let parts = HttpParts {
        jobs: jobs.clone(),
        catalog: Arc::clone(&catalog),
        authenticator: authenticator.clone(),
        metrics,
        settings: http_settings(&config),
    };
    let address = listener.local_addr()?;
    let (close, closing) = shutdown::channel();
    let server = tokio::spawn({
        let (closing, limits) = (closing.clone(), connection_limits(&config));
        async move { http::serve(listener, http::router(parts), closing.requested(), limits).await }
    });
    let recorder = tokio::spawn({
        let authenticator = authenticator.clone();
        async move { authenticator.record_uses_until(closing.requested()).await }
    });

    let url = format!("http://{}", reachable(address));
    writeln!(out, "fluxserve listens on {url}")?;
    out.flush()?;
    tokio::select! {
        ready = all_ready(&queues) => {
            ready?;
            greet(out, &url, &catalog, demo_key.as_ref().map(|key| key.plain.reveal()))?;
            shutdown.requested().await;
        }
        () = shutdown.requested() => {}
    }
    // No longer needed, and the process may yet take a while to end.
    drop(demo_key);

    jobs.drain();
    let unfinished = jobs.wait_until_idle(Duration::from_secs(config.drain_deadline_seconds)).await;
    if unfinished > 0 {
        tracing::warn!(unfinished, "the drain deadline has passed; these jobs are drawn at the next start");
    }
    jobs.close();
    close.request();
    if tokio::time::timeout(CONNECTIONS_CLOSE_DEADLINE, server).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
    // The engines have stopped: what their last events left to write down is short.
    jobs.wait_until_idle(CONNECTIONS_CLOSE_DEADLINE).await;
    recorder.await?;
    keys.store.close().await;
    Ok(())
}

fn start_logs(config: &Config) -> anyhow::Result<()> {
    let format = match config.log.format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    Ok(telemetry::start_logs(&config.log.filter, format)?)
}

fn job_settings(config: &Config) -> JobSettings {
    JobSettings {
        results_directory: config.results_dir(),
        results_retention: Duration::from_secs(config.results.retention_seconds),
        results_bytes_max: config.results.bytes_max,
        sweep_interval: SWEEP_INTERVAL,
    }
}

fn http_settings(config: &Config) -> HttpSettings {
    let wait_max = Duration::from_secs(config.http.wait_seconds_max);
    HttpSettings {
        body_bytes_max: usize::try_from(config.http.body_limit_bytes).unwrap_or(usize::MAX),
        wait_max,
        request_deadline: wait_max + REQUEST_MARGIN,
        public_url: config.http.public_url.as_ref().map(ToString::to_string),
        ..HttpSettings::default()
    }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    let connections_max = usize::try_from(config.http.connections_max).unwrap_or(usize::MAX);
    ConnectionLimits {
        connections_max,
        // One peer alone must leave room for others.
        connections_per_peer_max: connections_max / 2,
        header_deadline: Duration::from_secs(config.http.header_deadline_seconds),
        ..ConnectionLimits::default()
    }
}

/// One engine and one queue for each served model.
fn start_engines(config: &Config, catalog: &Catalog) -> anyhow::Result<BTreeMap<ModelId, Queue>> {
    let mut queues = BTreeMap::new();
    for (card, files) in catalog.served() {
        let settings = QueueSettings {
            model: card.id.clone(),
            jobs_max: usize::try_from(config.queue.jobs_max)?,
            warm_up: warm_up_spec(&card),
            builds_max: ENGINE_BUILDS_MAX,
            rebuild_delay: ENGINE_REBUILD_DELAY,
        };
        queues.insert(card.id.clone(), Queue::start(settings, engine_factory(files, config.device))?);
    }
    Ok(queues)
}

fn engine_factory(files: ModelFiles, device: DeviceChoice) -> EngineFactory {
    Box::new(move || match FluxEngine::load(&files, device) {
        Ok(engine) => Ok(Box::new(engine) as Box<dyn StepEngine>),
        Err(error) => Err(EngineError::Fatal(error.to_string())),
    })
}

/// Returns when every engine has drawn its first picture.
async fn all_ready(queues: &BTreeMap<ModelId, Queue>) -> anyhow::Result<()> {
    for (model, queue) in queues {
        let mut state = queue.state();
        let settled = state.wait_for(|state| matches!(state, EngineState::Ready | EngineState::GivenUp)).await?;
        if *settled == EngineState::GivenUp {
            bail!("the engine of `{model}` could not be built; the log says why");
        }
    }
    Ok(())
}

/// How a client on this machine reaches an address: the wildcards are not addresses one can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Says what can be done now.
fn greet(out: &mut dyn Write, url: &str, catalog: &Catalog, demo_key: Option<&str>) -> anyhow::Result<()> {
    let served = catalog.served();
    for (card, files) in &served {
        let place = match files {
            ModelFiles::Directory(directory) => directory.display().to_string(),
            ModelFiles::Embedded(_) => "in the program".to_owned(),
        };
        writeln!(out, "{} is ready ({place})", card.id)?;
        if let Some(notice) = &card.notice {
            writeln!(out, "  note: {notice}")?;
            tracing::warn!(model = %card.id, "{notice}");
        }
    }
    let key = match demo_key {
        Some(key) => {
            writeln!(out, "A demo key, shown this once: {key}")?;
            key
        }
        None => "$FLUXSERVE_API_KEY",
    };
    let Some((card, _)) = served.first() else { return Ok(()) };
    writeln!(
        out,
        "Draw a picture:\n\n  curl --fail-with-body -sS {url}/v1/inference/image -H \"x-api-key: {key}\" \
         -H \"content-type: application/json\" -H \"accept: image/png\" -d '{{\"model\": \"{}\", \"prompt\": \"a red circle on a blue background\"}}' \
         --output picture.png\n",
        card.id
    )?;
    out.flush()?;
    Ok(())
}
