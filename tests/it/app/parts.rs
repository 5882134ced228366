//! The parts of a worker: settings of its jobs, queues with fake engines, its cluster, its keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fluxserve::auth::{Actor, AdminService, KeyService, NewKey, PublicId};
use fluxserve::catalog::{Catalog, warm_up_spec};
use fluxserve::domain::clock::{Clock, ManualClock};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::limits::KeyLimits;
use fluxserve::domain::model::{ModelCard, ModelFiles};
use fluxserve::domain::model_source::ModelSource;
use fluxserve::domain::review::Reviewer;
use fluxserve::domain::scope::Scope;
use fluxserve::domain::webhook::AllowedHosts;
use fluxserve::engine::{Adaptable, Adapter};
use fluxserve::hooks::{WebhookParts, WebhookSettings, Webhooks};
use fluxserve::http;
use fluxserve::jobs::{JobService, JobSettings};
use fluxserve::kubernetes::{Cluster, ClusterSettings, Kubernetes, KubernetesParts};
use fluxserve::loras::{HubFile, Inspected, LoraCatalog, LoraParts, LoraReport};
use fluxserve::moderation::Moderator;
use fluxserve::queue::{Queue, QueueSettings};
use fluxserve::store::Store;
use fluxserve::uploads::{UploadParts, Uploads};
use tempfile::TempDir;

use super::{MODEL, NAMESPACE, Options, PASSWORD, PATIENCE};
use crate::fake_engine::EngineControl;

/// The keys of a worker by scope and state.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) inference: String,
    pub(crate) other_inference: String,
    pub(crate) all: String,
    pub(crate) kubernetes: String,
    pub(crate) kubernetes_one: String,
    pub(crate) expired: String,
    pub(crate) revoked: String,
}

/// The catalog with the model of the options.
pub(super) fn catalog_of(options: &Options) -> Arc<Catalog> {
    let choice = ModelSource::new(ModelId::new(MODEL), None);
    let catalog = Catalog::new(&[choice]).expect("a known model").with_precision(options.precision);
    let mut card = ModelCard::clone(catalog.card(&ModelId::new(MODEL)).expect("a known model"));
    (options.change_card)(&mut card);
    Arc::new(catalog.with_card(card))
}

pub(super) async fn set_password(admin: &AdminService) {
    let password = PASSWORD.parse().expect("long enough");
    admin.ensure_password(&password, &Actor::CommandLine).await.expect("set");
}

pub(super) fn job_settings(options: &Options, folder: &TempDir) -> JobSettings {
    JobSettings {
        results_directory: folder.path().join("results"),
        loras_directory: folder.path().join("loras"),
        link_secret_path: folder.path().join("links.secret"),
        link_life: Duration::from_hours(1),
        storage_patience: options.storage_patience,
        results_retention: Duration::from_hours(24),
        results_bytes_max: options.results_bytes_max,
        ended_jobs_per_owner_max: options.ended_jobs_per_owner_max,
        input_images_bytes_max: options.input_images_bytes_max,
        writes_provenance: options.writes_provenance,
        sweep_interval: Duration::from_hours(1),
        prices: options.prices,
    }
}

pub(super) fn webhook_settings(options: &Options, folder: &TempDir) -> WebhookSettings {
    WebhookSettings {
        is_enabled: options.has_webhooks,
        allows_http: true,
        allowed_hosts: AllowedHosts::of(&options.webhook_hosts).expect("a list"),
        only_allowed_hosts: false,
        secret_path: folder.path().join("webhooks.secret"),
        origin: "http://configured.test".into(),
        alerts: options.alerts.clone(),
    }
}

/// The courier ends with the test's runtime, or with its database.
pub(super) async fn start_webhooks(
    options: &Options,
    folder: &TempDir,
    (store, keys, jobs): (&Store, &KeyService, &JobService),
    clock: Arc<dyn Clock>,
) -> Webhooks {
    let parts = WebhookParts {
        store: store.clone(),
        keys: keys.clone(),
        jobs: jobs.clone(),
        render: Arc::new(http::job_json),
        lookup: options.lookup.clone(),
        clock,
        settings: webhook_settings(options, folder),
    };
    let webhooks = Webhooks::open(parts).await.expect("a secret");
    let (courier, store) = (webhooks.clone(), store.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = courier.deliver() => {}
            () = store.pool().close_event() => {}
        }
    });
    webhooks
}

/// Asks the moderation service of the options, if there is one.
pub(super) fn reviewer(options: &Options, admin: &AdminService, keys: &KeyService) -> Option<Arc<dyn Reviewer>> {
    let settings = options.moderation.clone()?;
    let moderator: Arc<dyn Reviewer> =
        Arc::new(Moderator::new(settings, admin.clone(), keys.clone()).expect("a usable URL"));
    Some(moderator)
}

/// The catalog of LoRAs, after the removal of what a crash has left. They are compared with the small reference model.
pub(super) async fn start_loras(
    options: &Options,
    folder: &TempDir,
    store: &Store,
    clock: Arc<dyn Clock>,
) -> LoraCatalog {
    let inspect = |path: &Path| -> Result<Inspected, String> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let model = Adaptable::of(&ModelFiles::Directory(model)).expect("a complete model");
        let adapter = Adapter::open(path, &model).and_then(|adapter| adapter.check().map(|()| adapter));
        let adapter = adapter.map_err(|error| error.to_string())?;
        let report = LoraReport { tensors: adapter.report().tensors, base: "FLUX.1".into(), ..LoraReport::default() };
        Ok(Inspected { report, thumbnail: None })
    };
    // A hub with one repository: the recorded adapters.
    let fetch = |HubFile { repository, file, .. }: HubFile| -> Result<PathBuf, String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/lora/adapters");
        let file = file.filter(|_| repository == "test/loras").map(|file| folder.join(file));
        file.ok_or_else(|| format!("`{repository}` is not on the hub"))
    };
    let loras = LoraCatalog::new(LoraParts {
        store: store.clone(),
        folder: folder.path().join("loras"),
        inspect: Arc::new(inspect),
        fetch: Arc::new(fetch),
        clock,
        file_bytes_max: options.lora_bytes_max,
    });
    loras.sweep().await.expect("swept");
    loras
}

/// The uploads, after the removal of what a crash has left.
pub(super) async fn start_uploads(
    options: &Options,
    folder: &TempDir,
    (store, keys): (&Store, &KeyService),
    clock: Arc<dyn Clock>,
) -> Uploads {
    let (store, keys, limits) = (store.clone(), keys.clone(), options.uploads);
    let bucket = options.bucket.as_ref().map(|bucket| bucket.objects.clone());
    let parts = UploadParts { store, keys, folder: folder.path().join("uploads"), bucket, clock, limits };
    Uploads::start(parts).await.expect("a database")
}

pub(super) fn start_queues(catalog: &Catalog, options: &Options, control: &EngineControl) -> BTreeMap<ModelId, Queue> {
    let start = |(card, _): (Arc<_>, _)| {
        let card: &fluxserve::domain::model::ModelCard = &card;
        let settings = QueueSettings {
            model: card.id.clone(),
            jobs_max: options.jobs_max,
            warm_up: warm_up_spec(card),
            rebuild_delay: Duration::from_millis(5),
            rebuild_delay_max: Duration::from_millis(50),
            outage_max: PATIENCE,
            stall_min: options.stall_min,
        };
        let control = control.clone();
        let queue = Queue::start(&settings, vec![Box::new(move || control.build())]).expect("a thread");
        (card.id.clone(), queue)
    };
    catalog.served().into_iter().map(start).collect()
}

/// The keeper ends with the test's runtime.
pub(super) async fn start_kubernetes(
    cluster: Option<&ClusterSettings>,
    auto_open: bool,
    (store, keys): (&Store, &KeyService),
    clock: Arc<dyn Clock>,
) -> Kubernetes {
    let cluster = match cluster {
        Some(settings) => Some(Cluster::open(settings).await.expect("a cluster")),
        None => None,
    };
    let rights = Arc::new(keys.clone());
    let kubernetes = Kubernetes::new(KubernetesParts { store: store.clone(), cluster, rights, clock, auto_open });
    let keeper = kubernetes.clone();
    tokio::spawn(async move { keeper.keep().await });
    kubernetes
}

pub(super) async fn make_keys(service: &KeyService, clock: &ManualClock) -> Keys {
    let make_until = |scope: Scope, expires_at| async move {
        let key = NewKey { name: "test".into(), scope, expires_at, limits: KeyLimits::default() };
        service.create(key, &Actor::CommandLine).await.expect("a key").plain.reveal().to_owned()
    };
    let make = |scope: Scope| make_until(scope, None);
    let namespace = NAMESPACE.parse().expect("an id");
    let keys = Keys {
        inference: make(Scope::Inference).await,
        other_inference: make(Scope::Inference).await,
        all: make(Scope::All).await,
        kubernetes: make(Scope::KubernetesAll).await,
        kubernetes_one: make(Scope::KubernetesNamespaces(vec![namespace])).await,
        expired: make_until(Scope::All, Some(clock.now() + time::Duration::seconds(1))).await,
        revoked: make(Scope::All).await,
    };
    clock.advance(time::Duration::seconds(1));
    let prefix: PublicId = keys.revoked[..13].parse().expect("a prefix");
    service.revoke(prefix, &Actor::CommandLine).await.expect("revoked");
    keys
}
