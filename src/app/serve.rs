//! `serve`: starts a worker from the configuration, and shuts it down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::Keys;
use super::alerts::tell_of_alerts;
use super::cluster::cluster_settings;
use super::data_lock::DataLock;
use super::engines::{EngineBuilder, check_models, device_lost, flux_engine, settled, start_engines};
use super::greeting::{Urls, greet, local_url};
use super::hub::local_models;
use super::logs::start_logs;
use super::loras::swept_lora_catalog;
use super::models::catalog_of;
use super::removed_files::{CHECK_INTERVAL, files_removed};
use super::result_bucket::result_bucket;
use super::surface::{Addresses, client_connections, http_settings, in_the_clear, other_connections};
use super::uploads::start_uploads;
use super::webhooks::{open_webhooks, webhook_settings};
use super::{compute_threads, heap, moderation, open_files, results_disk, revoked_keys};
use crate::auth::Authenticator;
use crate::catalog::Catalog;
use crate::config::{Config, DEFAULT_METRICS_LISTEN, MetricsListen};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::device::Devices;
use crate::domain::ids::ModelId;
use crate::engine;
use crate::hooks::{self, Webhooks};
use crate::http::{self, HttpParts, HttpSettings, Tls};
use crate::jobs::{ENDED_JOBS_PER_OWNER_MAX, INPUT_IMAGES_BYTES_MAX, JobService, JobSettings, ServiceParts};
use crate::kubernetes::{Cluster, Kubernetes, KubernetesParts};
use crate::queue::Queue;
use crate::shutdown::{self, Shutdown, ShutdownTrigger};
use crate::store::Store;
use crate::telemetry::pipe::Pipe;
use crate::telemetry::{self, LAST_LINES_DEADLINE};
use crate::usage::Usage;

/// Time between sweeps of ended jobs.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// How long storing an image is retried: the disk may be full, out of descriptors, or not mounted just now.
const STORAGE_PATIENCE: Duration = Duration::from_secs(30);

/// Time for open connections to receive their last response, after all jobs are done.
const CONNECTIONS_CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the worker until `shutdown` is requested and accepted jobs are done. Greets on `out`, whether or not that is
/// read.
///
/// # Errors
/// When it cannot start, and [`super::DeviceLost`] when a device is lost to this process.
pub async fn serve(config: Config, shutdown: Shutdown, out: Pipe) -> anyhow::Result<()> {
    serve_with(config, shutdown, out, Arc::new(flux_engine)).await
}

/// [`serve`] with engines of another kind.
///
/// # Errors
/// As there.
pub async fn serve_with(
    config: Config,
    shutdown: Shutdown,
    out: Pipe,
    build: Arc<EngineBuilder>,
) -> anyhow::Result<()> {
    let logging = start_logs(&config, &config.log.filter, config.telemetry.otlp_endpoint.as_deref())?;
    let outcome = serve_until(&config, &shutdown, &out, &build).await;
    // Waits for the collector of spans and for readers, so it must not run on an async thread. A panic there must not
    // hide the outcome.
    let last_words = move || {
        // Whether the last lines were read does not matter now.
        let _ = out.flush(LAST_LINES_DEADLINE);
        logging.finish();
    };
    drop(tokio::task::spawn_blocking(last_words).await);
    outcome
}

async fn serve_until(
    config: &Config,
    shutdown: &Shutdown,
    out: &Pipe,
    build: &Arc<EngineBuilder>,
) -> anyhow::Result<()> {
    heap::bound_what_is_kept();
    compute_threads::start_behind_server(config);
    open_files::make_room(config)?;
    let sources = tokio::select! {
        sources = local_models(config) => sources?,
        // What was downloaded of a model stays, and the next start resumes it.
        () = shutdown.requested() => return Ok(()),
    };
    let catalog = Arc::new(catalog_of(config, &sources)?);
    check_models(config, &catalog)?;
    // Held until the end: no other process may run the jobs before this one has released them.
    let lock = DataLock::take(&config.data_dir)?;
    let doors = Doors::open(config).await?;
    let keys = Keys::open(config).await?;
    let started = async {
        keys.apply_password(config).await?;
        Worker::start(config, catalog, &keys, doors, build).await
    };
    let outcome = match started.await {
        Ok(worker) => {
            let mut is_device_lost = false;
            let outcome = tokio::select! {
                biased;
                lost = device_lost(&worker.queues) => {
                    is_device_lost = true;
                    tracing::error!("{lost}");
                    Err(lost.into())
                }
                outcome = worker.welcome((config, &keys), shutdown, out) => outcome,
                never = heap::give_back_when_idle() => match never {},
                error = files_removed(&lock, &keys.store, CHECK_INTERVAL) => {
                    tracing::error!("{error:#}");
                    Err(error)
                }
            };
            // After an error there is nothing to wait for: the next start runs pending jobs.
            let drain_deadline = outcome.as_ref().map_or(0, |()| config.drain_deadline_seconds);
            worker.stop(Duration::from_secs(drain_deadline), is_device_lost).await;
            outcome
        }
        Err(error) => Err(error),
    };
    keys.store.close().await;
    outcome
}

/// Listeners for connections.
struct Doors {
    clients: TcpListener,
    /// For the console and management routes, if they have an address of their own.
    management: Option<TcpListener>,
    /// For metrics.
    metrics: Option<TcpListener>,
    tls: Option<Tls>,
}

impl Doors {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let tls = config.tls.as_ref().map(|files| Tls::load(files.certificate.clone(), files.private_key.clone()));
        let tls = tls.transpose().context("serving by https")?;
        let clients = listen(config.listen, "--listen").await?;
        let management = match config.admin_listen {
            Some(address) => Some(listen(address, "--admin-listen").await?),
            None => None,
        };
        let metrics = match config.metrics_listen {
            MetricsListen::Off => None,
            MetricsListen::At(address) => Some(listen(address, "`metrics_listen`").await?),
            // The default address, not a configured one: another worker on this machine may have it.
            MetricsListen::IfFree => TcpListener::bind(DEFAULT_METRICS_LISTEN)
                .await
                .inspect_err(|error| {
                    tracing::warn!(
                        "metrics are not served: listening on {DEFAULT_METRICS_LISTEN}: {error}; set `metrics_listen` to \
                         another address, or to `off`"
                    );
                })
                .ok(),
        };
        Ok(Self { clients, management, metrics, tls })
    }

    fn addresses(&self) -> anyhow::Result<Addresses> {
        let address = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses {
            clients: self.clients.local_addr()?,
            management: address(&self.management)?,
            metrics: address(&self.metrics)?,
        })
    }

    fn urls(&self) -> anyhow::Result<Urls> {
        let url =
            |listener: &TcpListener| Ok::<_, anyhow::Error>(local_url(listener.local_addr()?, self.tls.is_some()));
        let clients = url(&self.clients)?;
        let management = self.management.as_ref().map(url).transpose()?;
        Ok(Urls { management: management.unwrap_or_else(|| clients.clone()), clients })
    }
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listening on {address}: choose another address with {flag}"))
}

/// A running worker.
struct Worker {
    urls: Urls,
    catalog: Arc<Catalog>,
    queues: BTreeMap<ModelId, Queue>,
    jobs: JobService,
    servers: JoinSet<()>,
    /// Stores when keys were last used.
    uses: JoinHandle<()>,
    /// Cancels the jobs of revoked keys, keeps the cluster in line with the keys' rights, removes old uploads, watches budgets,
    /// tells of their alerts, and delivers to webhooks.
    keepers: JoinSet<()>,
    close: ShutdownTrigger,
}

/// Watches budgets, and delivers what is to be told of them and of jobs.
fn keep_telling(keepers: &mut JoinSet<()>, store: &Store, usage: Usage, webhooks: Webhooks) {
    keepers.spawn(tell_of_alerts(store.clone(), usage.clone(), webhooks.clone()));
    keepers.spawn(async move { usage.watch_budgets().await });
    keepers.spawn(async move { webhooks.deliver().await });
}

fn warn(note: Option<String>) {
    if let Some(note) = note {
        tracing::warn!("{note}");
    }
}

impl Worker {
    async fn start(
        config: &Config,
        catalog: Arc<Catalog>,
        keys: &Keys,
        doors: Doors,
        build: &Arc<EngineBuilder>,
    ) -> anyhow::Result<Self> {
        let urls = doors.urls()?;
        let webhook_settings = webhook_settings(config, &urls.clients)?;
        // Before anything is counted.
        let metrics = telemetry::metrics::install();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let authenticator = Authenticator::new(keys.store.clone(), Arc::clone(&clock))?;
        let bucket = result_bucket(config)?;
        let uploads = start_uploads(config, keys, &clock, bucket.as_ref()).await?;
        let reviewer = moderation::reviewer(config, keys)?;
        let queues = start_engines(config, &catalog, build)?;
        let loras = swept_lora_catalog(config, &keys.store, &clock).await;
        let parts = ServiceParts {
            store: keys.store.clone(),
            catalog: Arc::clone(&catalog),
            queues: queues.clone(),
            clock: Arc::clone(&clock),
            bucket,
            reviewer,
            settings: job_settings(config),
            outbox: hooks::outbox(&webhook_settings),
        };
        let kubernetes = open_kubernetes(config, keys, &parts.clock)
            .await
            .inspect_err(|_| queues.values().for_each(Queue::close))?;
        warn(results_disk::too_small(config));
        let jobs = JobService::start(parts).await.inspect_err(|_| queues.values().for_each(Queue::close))?;
        let usage = Usage::new(keys.store.clone(), keys.service.clone(), jobs.clone());
        let webhooks = open_webhooks(keys, &jobs, clock, webhook_settings).await.inspect_err(|_| jobs.close())?;
        let routers = http::routers(HttpParts {
            jobs: jobs.clone(),
            catalog: Arc::clone(&catalog),
            authenticator: authenticator.clone(),
            keys: keys.service.clone(),
            admin: keys.admin.clone(),
            loras,
            uploads: uploads.clone(),
            usage: usage.clone(),
            kubernetes: kubernetes.clone(),
            webhooks: webhooks.clone(),
            device: describe_devices(&config.device),
            metrics,
            settings: HttpSettings {
                local_url: Some(urls.clients.clone()),
                ..http_settings(config, &doors.addresses()?)
            },
        });
        warn(in_the_clear(config, &doors.addresses()?));
        let (close, closing) = shutdown::channel();
        let mut servers = JoinSet::new();
        if let Some(tls) = doors.tls.clone() {
            // Ends with the process: nothing waits for it.
            tokio::spawn(tls.reload_when_changed());
        }
        let tls = doors.tls;
        let mut served = vec![(doors.clients, routers.clients, client_connections(config), tls.clone())];
        let management = doors.management.zip(routers.management);
        served.extend(management.map(|(listener, router)| (listener, router, other_connections(config), tls)));
        // Without TLS: an operator who sets `metrics_listen` trusts that network with the metrics.
        served.extend(doors.metrics.map(|listener| (listener, routers.metrics, other_connections(config), None)));
        for (listener, router, limits, tls) in served {
            let closing = closing.clone();
            servers.spawn(async move { http::serve(listener, router, closing.requested(), limits, tls).await });
        }
        let uses = tokio::spawn(async move { authenticator.record_uses_until(closing.requested()).await });
        let mut keepers = JoinSet::new();
        keepers.spawn(revoked_keys::cancel_their_jobs(keys.store.clone(), keys.service.clone(), jobs.clone()));
        keepers.spawn(async move { kubernetes.keep().await });
        keepers.spawn(uploads.keep());
        keep_telling(&mut keepers, &keys.store, usage, webhooks);
        Ok(Self { urls, catalog, queues, jobs, servers, uses, keepers, close })
    }

    /// Greets once the engines are ready; returns when shutdown is requested.
    async fn welcome(&self, context: (&Config, &Keys), shutdown: &Shutdown, out: &Pipe) -> anyhow::Result<()> {
        out.send(format!("fluxserve listens on {}\n", self.urls.clients).as_bytes());
        tokio::select! {
            not_ready = settled(&self.queues) => {
                greet((out, shutdown), &self.urls, &self.catalog, &not_ready?, context).await?;
                shutdown.requested().await;
            }
            () = shutdown.requested() => {}
        }
        Ok(())
    }

    /// Lets accepted jobs finish, then ends everything. Jobs that are unfinished by then are left to the next start. If one
    /// of them may have broken the device (`counts_as_crash`), the running ones are tried alone then, and not for ever.
    async fn stop(self, drain_deadline: Duration, counts_as_crash: bool) {
        let Self { jobs, mut servers, uses, mut keepers, close, .. } = self;
        jobs.drain();
        let unfinished = jobs.wait_until_idle(drain_deadline).await;
        if unfinished > 0 {
            tracing::warn!(unfinished, "the drain deadline has passed; these jobs are run at the next start");
        }
        keepers.abort_all();
        jobs.close();
        close.request();
        let all_closed = async { while servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CONNECTIONS_CLOSE_DEADLINE, all_closed).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
        // The engines have stopped: storing their last events is quick.
        jobs.wait_until_idle(CONNECTIONS_CLOSE_DEADLINE).await;
        if counts_as_crash {
            tracing::warn!("this stop counts as a crash for the jobs it has interrupted");
        } else if let Err(error) = jobs.leave_to_next_start().await {
            tracing::error!(?error, "this stop counts as a crash for the jobs it has interrupted");
        }
        if let Err(error) = uses.await {
            tracing::error!(%error, "the last uses of keys were not stored");
        }
    }
}

async fn open_kubernetes(config: &Config, keys: &Keys, clock: &Arc<dyn Clock>) -> anyhow::Result<Kubernetes> {
    let cluster = match cluster_settings(config) {
        Some(settings) => Some(Cluster::open(&settings).await.context("finding the cluster")?),
        None => None,
    };
    Ok(Kubernetes::new(KubernetesParts {
        store: keys.store.clone(),
        cluster,
        rights: Arc::new(keys.service.clone()),
        clock: Arc::clone(clock),
        auto_open: config.kubernetes.auto_open,
    }))
}

fn describe_devices(devices: &Devices) -> String {
    let words: Vec<String> =
        devices.iter().map(|device| engine::name(device).unwrap_or_else(|_| device.to_string())).collect();
    words.join("; ")
}

fn job_settings(config: &Config) -> JobSettings {
    JobSettings {
        results_directory: config.results_dir(),
        loras_directory: config.loras_dir(),
        link_secret_path: config.link_secret_path(),
        link_life: Duration::from_secs(config.results.link_seconds),
        storage_patience: STORAGE_PATIENCE,
        results_retention: Duration::from_secs(config.results.retention_seconds),
        results_bytes_max: config.results.bytes_max,
        ended_jobs_per_owner_max: ENDED_JOBS_PER_OWNER_MAX,
        input_images_bytes_max: INPUT_IMAGES_BYTES_MAX,
        writes_provenance: config.results.provenance,
        sweep_interval: SWEEP_INTERVAL,
        prices: config.prices,
    }
}
