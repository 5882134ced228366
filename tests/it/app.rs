//! A complete worker in this process, and its clients by role.

mod answer;
mod options;
mod parts;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode, header};
use fluxserve::auth::{AdminService, Authenticator, KeyService};
use fluxserve::catalog::{Availability, Catalog};
use fluxserve::domain::clock::{Clock, ManualClock};
use fluxserve::domain::ids::ModelId;
use fluxserve::hooks::{self, Webhooks};
use fluxserve::http::{ConnectionLimits, HttpParts, Routers, routers, serve};
use fluxserve::jobs::{JobService, ServiceParts};
use fluxserve::store::Store;
use fluxserve::telemetry;
use fluxserve::uploads::Uploads;
use fluxserve::usage::Usage;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt;

pub(crate) use answer::{Answer, decoded};
pub(crate) use options::Options;
pub(crate) use parts::Keys;
use parts::{
    catalog_of, job_settings, make_keys, reviewer, set_password, start_kubernetes, start_loras, start_queues,
    start_uploads, start_webhooks, webhook_settings,
};

use crate::documented;
use crate::fake_engine::EngineControl;

pub(crate) const PASSWORD: &str = "the password of these tests";
/// The namespace of the key for one namespace.
pub(crate) const NAMESPACE: &str = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
pub(crate) const MODEL: &str = "fluxserve/flux-shapes";
/// Longest wait of a test.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestApp {
    pub(crate) router: Router,
    /// The management routes, if they have their own address.
    pub(crate) management: Option<Router>,
    /// The metrics, if they have their own address.
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
    pub(crate) uploads: Uploads,
    pub(crate) usage: Usage,
    pub(crate) webhooks: Webhooks,
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

    /// Restarts the worker on the data of the last run.
    pub(crate) async fn restart(self, options: Options) -> Self {
        // The folder is kept; everything in memory is gone.
        let Self { folder, clock, keys, .. } = self;
        Self::build(options, folder, clock, Some(keys)).await
    }

    async fn build(options: Options, folder: TempDir, clock: ManualClock, keys: Option<Keys>) -> Self {
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("a database");
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let catalog = catalog_of(&options);
        let control = options.control.clone();
        let queues = start_queues(&catalog, &options, &control);
        let service = KeyService::new(store.clone(), Arc::clone(&shared_clock));
        let admin = AdminService::new(store.clone(), Arc::clone(&shared_clock));
        let parts = ServiceParts {
            store: store.clone(),
            catalog: Arc::clone(&catalog),
            queues,
            clock: Arc::clone(&shared_clock),
            reviewer: reviewer(&options, &admin, &service),
            settings: job_settings(&options, &folder),
            outbox: hooks::outbox(&webhook_settings(&options, &folder)),
        };
        let loras = start_loras(&options, &folder, &store, Arc::clone(&shared_clock)).await;
        let jobs = JobService::start(parts).await.expect("a service");
        let authenticator = Authenticator::new(store.clone(), Arc::clone(&shared_clock)).expect("random bytes");
        let uploads = start_uploads(&options, &folder, (&store, &service), Arc::clone(&shared_clock)).await;
        let webhooks = start_webhooks(&options, &folder, (&store, &service, &jobs), Arc::clone(&shared_clock)).await;
        let kubernetes =
            start_kubernetes(options.cluster.as_ref(), options.auto_open, (&store, &service), shared_clock).await;
        if options.has_password {
            set_password(&admin).await;
        }
        let keys = if let Some(keys) = keys { keys } else { make_keys(&service, &clock).await };
        let usage = Usage::new(store.clone(), service.clone(), jobs.clone());
        let Routers { clients: router, management, metrics } = routers(HttpParts {
            jobs: jobs.clone(),
            catalog: Arc::clone(&catalog),
            authenticator: authenticator.clone(),
            keys: service.clone(),
            admin: admin.clone(),
            loras,
            uploads: uploads.clone(),
            usage: usage.clone(),
            kubernetes,
            webhooks: webhooks.clone(),
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
            uploads,
            usage,
            webhooks,
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

    /// Waits until the health check has this status.
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

    /// Stops during work: only what is on the disk now remains.
    pub(crate) async fn crash(&self) {
        let files = self.database_files().await;
        // First, so that nothing is stored from here on.
        self.store.close().await;
        self.jobs.close();
        self.control.release();
        assert_eq!(self.jobs.wait_until_idle(PATIENCE).await, 0);
        // Closing has merged the write-ahead log into the file.
        for (path, bytes) in files {
            std::fs::write(path, bytes).expect("writable");
        }
    }

    async fn database_files(&self) -> [(PathBuf, Vec<u8>); 2] {
        // While a transaction reads, the log keeps what is merged into the file.
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

    /// Stops during work like a worker whose drain deadline has passed.
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

    /// Sends a request that is not in the OpenAPI document, such as a preflight.
    pub(crate) async fn send_undocumented(&self, request: Request<Body>) -> Answer {
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

    /// Signs in and returns the cookie.
    pub(crate) async fn sign_in(&self) -> String {
        let body = json!({ "password": PASSWORD });
        let answer = self.send(request("POST", "/v1/session", None, Some(&body))).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let cookie = answer.header("set-cookie").split(';').next().expect("a pair");
        cookie.to_owned()
    }

    /// Submits an image and returns its job's id.
    pub(crate) async fn submit(&self, body: &Value) -> String {
        let answer = self.post(body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        answer.json()["job_id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a job has `status`, and returns it.
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
    let bytes = body.collect().await.expect("a complete body").to_bytes().to_vec();
    Answer { status: parts.status, headers: parts.headers, bytes }
}

/// Serves a worker on a free port of this machine, until the task is aborted.
pub(crate) async fn listen(app: &TestApp, limits: ConnectionLimits) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (address, tokio::spawn(serve(listener, app.router.clone(), std::future::pending(), limits, None)))
}

/// A request with an optional key and JSON body.
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

/// A request with a session's cookie and an optional JSON body.
pub(crate) fn managing(cookie: &str, method: &str, path: &str, body: Option<&Value>) -> Request<Body> {
    let mut request = request(method, path, None, body);
    request.headers_mut().insert(header::COOKIE, cookie.parse().expect("a value"));
    request
}

/// A small image that is generated quickly.
pub(crate) fn image(seed: u64) -> Value {
    json!({ "model": MODEL, "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": seed })
}
