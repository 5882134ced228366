//! A whole worker in this process, and clients of it by role.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode, header};
use fluxserve::auth::{Actor, AdminService, Authenticator, KeyService, NewKey, PublicId};
use fluxserve::catalog::{Availability, Catalog, warm_up_spec};
use fluxserve::domain::clock::{Clock, ManualClock};
use fluxserve::domain::ids::ModelId;
use fluxserve::domain::limits::KeyLimits;
use fluxserve::domain::model_source::ModelSource;
use fluxserve::domain::precision::Precision;
use fluxserve::domain::scope::Scope;
use fluxserve::http::{ConnectionLimits, HttpParts, HttpSettings, Routers, routers, serve};
use fluxserve::jobs::{JobService, JobSettings, ServiceParts};
use fluxserve::kubernetes::{Cluster, ClusterSettings, Kubernetes, KubernetesParts};
use fluxserve::queue::{Queue, QueueSettings};
use fluxserve::store::Store;
use fluxserve::telemetry;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::documented;
use crate::fake_engine::EngineControl;

pub(crate) const PASSWORD: &str = "the password of these tests";
/// The namespace that the key for one namespace names.
pub(crate) const NAMESPACE: &str = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
pub(crate) const MODEL: &str = "fluxserve/flux-shapes";
/// Longest a test waits for something to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a worker differs from the usual one.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, and named where it is set")]
pub(crate) struct Options {
    pub(crate) jobs_max: usize,
    pub(crate) results_bytes_max: u64,
    pub(crate) storage_patience: Duration,
    pub(crate) ended_jobs_per_owner_max: u32,
    pub(crate) input_images_bytes_max: u64,
    pub(crate) writes_provenance: bool,
    pub(crate) http: HttpSettings,
    pub(crate) control: EngineControl,
    pub(crate) waits_for_ready: bool,
    pub(crate) has_password: bool,
    pub(crate) cluster: Option<ClusterSettings>,
    pub(crate) auto_open: bool,
    pub(crate) precision: Precision,
    pub(crate) stall_min: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let http = HttpSettings {
            body_bytes_max: 16 * 1024,
            body_deadline: Duration::from_millis(200),
            wait_max: Duration::from_secs(20),
            request_deadline: Duration::from_secs(30),
            ..HttpSettings::default()
        };
        Self {
            jobs_max: 16,
            results_bytes_max: u64::MAX,
            storage_patience: PATIENCE,
            ended_jobs_per_owner_max: 100,
            input_images_bytes_max: 1024 * 1024,
            writes_provenance: true,
            http,
            control: EngineControl::default(),
            waits_for_ready: true,
            has_password: true,
            cluster: None,
            auto_open: false,
            precision: Precision::default(),
            stall_min: Duration::from_mins(1),
        }
    }
}

/// The keys of a worker, by what they may do.
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

pub(crate) struct TestApp {
    pub(crate) router: Router,
    /// Where the management routes have an address of their own.
    pub(crate) management: Option<Router>,
    /// Where metrics have one.
    pub(crate) metrics: Router,
    pub(crate) jobs: JobService,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) control: EngineControl,
    pub(crate) clock: ManualClock,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) service: KeyService,
    pub(crate) admin: AdminService,
    pub(crate) authenticator: Authenticator,
    pub(crate) folder: TempDir,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clock = ManualClock::new(OffsetDateTime::now_utc());
        Self::build(options, folder, clock, None).await
    }

    /// The next life of a worker, on what the last one left.
    pub(crate) async fn restart(self, options: Options) -> Self {
        // The folder lives on; everything that was in memory is gone.
        let Self { folder, clock, keys, .. } = self;
        Self::build(options, folder, clock, Some(keys)).await
    }

    async fn build(options: Options, folder: TempDir, clock: ManualClock, keys: Option<Keys>) -> Self {
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("a database");
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let choice = ModelSource { id: ModelId::new(MODEL), directory: None };
        let catalog = Catalog::new(&[choice]).expect("a known model").with_precision(options.precision);
        let catalog = Arc::new(catalog);
        let control = options.control.clone();
        let queues = start_queues(&catalog, &options, &control);
        let parts = ServiceParts {
            store: store.clone(),
            catalog: Arc::clone(&catalog),
            queues,
            clock: Arc::clone(&shared_clock),
            settings: job_settings(&options, &folder),
        };
        let jobs = JobService::start(parts).await.expect("a service");
        let authenticator = Authenticator::new(store.clone(), Arc::clone(&shared_clock)).expect("random bytes");
        let service = KeyService::new(store.clone(), Arc::clone(&shared_clock));
        let admin = AdminService::new(store.clone(), Arc::clone(&shared_clock));
        let kubernetes =
            start_kubernetes(options.cluster.as_ref(), options.auto_open, (&store, &service), shared_clock).await;
        if options.has_password {
            let password = PASSWORD.parse().expect("long enough");
            admin.ensure_password(&password, &Actor::CommandLine).await.expect("set");
        }
        let keys = match keys {
            Some(keys) => keys,
            None => make_keys(&service, &clock).await,
        };
        let Routers { clients: router, management, metrics } = routers(HttpParts {
            jobs: jobs.clone(),
            catalog: Arc::clone(&catalog),
            authenticator: authenticator.clone(),
            keys: service.clone(),
            admin: admin.clone(),
            kubernetes,
            device: "a fake".into(),
            metrics: telemetry::metrics::install(),
            settings: options.http,
        });
        let app = Self {
            router,
            management,
            metrics,
            jobs,
            catalog,
            control,
            clock,
            store,
            keys,
            service,
            admin,
            authenticator,
            folder,
        };
        if options.waits_for_ready {
            app.until_availability(Availability::Ready).await;
            app.control.forget_calls();
        }
        app
    }

    pub(crate) fn clock_now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    pub(crate) async fn until_availability(&self, availability: Availability) {
        let model = ModelId::new(MODEL);
        let started = Instant::now();
        while self.catalog.availability(&model) != availability {
            assert!(started.elapsed() < PATIENCE, "the model did not become {availability:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the question whether it lives is answered so.
    pub(crate) async fn until_alive(&self, status: u16) -> Answer {
        let started = Instant::now();
        loop {
            let answer = self.get("/healthz").await;
            if answer.status.as_u16() == status {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "not {status}: {}", answer.text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops in mid-work: all that stays is what is on the disk now.
    pub(crate) async fn crash(&self) {
        let files = self.database_files().await;
        // First, so that nothing that happens from here on is written down.
        self.store.close().await;
        self.jobs.close();
        self.control.release();
        assert_eq!(self.jobs.wait_until_idle(PATIENCE).await, 0);
        // Closing has folded the log into the file.
        for (path, bytes) in files {
            std::fs::write(path, bytes).expect("the disk takes it");
        }
    }

    async fn database_files(&self) -> [(PathBuf, Vec<u8>); 2] {
        // While somebody reads, what is folded out of the log stays in it, too.
        let mut reading = self.store.pool().begin().await.expect("a database");
        sqlx::query("SELECT COUNT(*) FROM jobs").fetch_one(&mut *reading).await.expect("a database");
        let files = ["fluxserve.db", "fluxserve.db-wal"].map(|name| {
            let path = self.folder.path().join(name);
            let bytes = std::fs::read(&path).expect("a file");
            (path, bytes)
        });
        reading.rollback().await.expect("a database");
        files
    }

    /// Stops in mid-work as a worker does whose drain deadline has passed.
    pub(crate) async fn stop_cleanly(&self) {
        self.jobs.drain();
        self.jobs.close();
        self.control.release();
        assert_eq!(self.jobs.wait_until_idle(PATIENCE).await, 0);
        self.jobs.leave_to_next_start().await.expect("a database");
        self.store.close().await;
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        self.send_from("127.0.0.1:40000", request).await
    }

    pub(crate) async fn send_from(&self, peer: &str, request: Request<Body>) -> Answer {
        self.send_to(&self.router, peer, request).await
    }

    pub(crate) async fn send_to(&self, router: &Router, peer: &str, mut request: Request<Body>) -> Answer {
        let peer: SocketAddr = peer.parse().expect("an address");
        request.extensions_mut().insert(ConnectInfo(peer));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = answer_of(router, request).await;
        documented::check(&method, &path, &answer);
        answer
    }

    /// Sends what is no request of the API's: a browser's question, of which its description says nothing.
    pub(crate) async fn send_undescribed(&self, request: Request<Body>) -> Answer {
        answer_of(&self.router, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path, Some(&self.keys.inference), None)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request("DELETE", path, Some(&self.keys.inference), None)).await
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        self.send(self.post_request(body, &[])).await
    }

    pub(crate) async fn post_with(&self, body: &Value, headers: &[(&str, &str)]) -> Answer {
        self.send(self.post_request(body, headers)).await
    }

    pub(crate) fn post_request(&self, body: &Value, headers: &[(&str, &str)]) -> Request<Body> {
        let mut request = request("POST", "/v1/inference/image", Some(&self.keys.inference), Some(body));
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().expect("a header name");
            request.headers_mut().insert(name, value.parse().expect("a header value"));
        }
        request
    }

    /// Signs in and gives the cookie.
    pub(crate) async fn sign_in(&self) -> String {
        let body = json!({ "password": PASSWORD });
        let answer = self.send(request("POST", "/v1/session", None, Some(&body))).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let cookie = answer.header("set-cookie").split(';').next().expect("a pair");
        cookie.to_owned()
    }

    /// Submits an image and gives its job's id.
    pub(crate) async fn submit(&self, body: &Value) -> String {
        let answer = self.post(body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        answer.json()["job_id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a job stands at `status`, and gives what is said of it.
    pub(crate) async fn until_status(&self, job: &str, status: &str) -> Value {
        let started = Instant::now();
        loop {
            let view = self.get(&format!("/v1/inference/jobs/{job}")).await.json();
            if view["status"] == status {
                return view;
            }
            assert!(started.elapsed() < PATIENCE, "the job did not become {status}: {view}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn answer_of(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("a router always answers");
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes().to_vec();
    Answer { status: parts.status, headers: parts.headers, bytes }
}

fn job_settings(options: &Options, folder: &TempDir) -> JobSettings {
    JobSettings {
        results_directory: folder.path().join("results"),
        link_secret_path: folder.path().join("links.secret"),
        link_life: Duration::from_hours(1),
        storage_patience: options.storage_patience,
        results_retention: Duration::from_hours(24),
        results_bytes_max: options.results_bytes_max,
        ended_jobs_per_owner_max: options.ended_jobs_per_owner_max,
        input_images_bytes_max: options.input_images_bytes_max,
        writes_provenance: options.writes_provenance,
        sweep_interval: Duration::from_hours(1),
    }
}

fn start_queues(catalog: &Catalog, options: &Options, control: &EngineControl) -> BTreeMap<ModelId, Queue> {
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

/// Its keeper ends with the test's runtime.
async fn start_kubernetes(
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

async fn make_keys(service: &KeyService, clock: &ManualClock) -> Keys {
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

/// Serves a worker on a free port of this machine, until the task is aborted.
pub(crate) async fn listen(app: &TestApp, limits: ConnectionLimits) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (address, tokio::spawn(serve(listener, app.router.clone(), std::future::pending(), limits, None)))
}

/// A request with a key and a JSON body, where they are given.
pub(crate) fn request(method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).header(header::HOST, "worker.test");
    if let Some(key) = key {
        builder = builder.header("x-api-key", key);
    }
    let body = body.map(|body| {
        builder
            .headers_mut()
            .expect("a valid builder")
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        Body::from(body.to_string())
    });
    builder.body(body.unwrap_or_default()).expect("a valid request")
}

/// A request with a session's cookie and a JSON body, where it is given.
pub(crate) fn managing(cookie: &str, method: &str, path: &str, body: Option<&Value>) -> Request<Body> {
    let mut request = request(method, path, None, body);
    request.headers_mut().insert(header::COOKIE, cookie.parse().expect("a value"));
    request
}

/// A small image that is drawn at once.
pub(crate) fn image(seed: u64) -> Value {
    json!({ "model": MODEL, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": seed })
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The code of an error, once everything that belongs to one was checked.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16());
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["title"].is_string() && body["type"].is_string(), "{body}");
        body["code"].as_str().expect("a code").to_owned()
    }

    /// An error in OpenAI's shape, once everything that belongs to one was checked.
    #[track_caller]
    pub(crate) fn openai_error(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text());
        assert_ne!(self.header("x-request-id"), "");
        let body = self.json();
        let mut body: serde_json::Map<String, Value> = serde_json::from_value(body).expect("an object");
        let error = body.remove("error").unwrap_or_else(|| panic!("no error: {}", self.text()));
        assert!(body.is_empty(), "{}", self.text());
        let names: Vec<&String> = error.as_object().expect("an object").keys().collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{error}");
        assert!(error["param"].is_string() || error.get("param") == Some(&Value::Null), "{error}");
        error
    }

    /// The code of an error that is one line for a terminal, once everything that belongs to one was checked.
    #[track_caller]
    pub(crate) fn terminal_code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.text());
        let body = self.json();
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "{body}");
        assert!(self.text().starts_with("{\"error\":") && !self.text().contains('\n'), "{body}");
        body["code"].as_str().expect("a code").to_owned()
    }

    /// The code of an error in any shape.
    #[track_caller]
    pub(crate) fn any_code(&self) -> String {
        if self.header("content-type") == "application/problem+json" {
            return self.code();
        }
        if self.json()["error"].is_string() {
            return self.terminal_code();
        }
        self.openai_error()["code"].as_str().expect("a code").to_owned()
    }

    /// The fields that an `invalid_request` names.
    #[track_caller]
    pub(crate) fn fields(&self) -> Vec<String> {
        assert_eq!(self.code(), "invalid_request");
        let body = self.json();
        let errors = body["errors"].as_array().expect("errors").iter();
        errors.map(|error| error["field"].as_str().expect("a name").to_owned()).collect()
    }
}

/// The decoded pixels of an encoded image: its size, and the colour of the first pixel.
pub(crate) fn decoded(bytes: &[u8]) -> (u32, u32, [u8; 3]) {
    let image = image::load_from_memory(bytes).expect("an image").to_rgb8();
    (image.width(), image.height(), image.get_pixel(0, 0).0)
}
