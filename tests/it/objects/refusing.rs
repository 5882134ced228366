//! A bucket that refuses one image, as a proxy with a limit for sizes does, and accepts all others.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use fluxserve::jobs::ResultBucket;
use fluxserve::objects::Objects;
use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use tokio_rustls::rustls::crypto::ring::default_provider;

use super::{PATIENCE, PREFIX, file_of, generated, name_of, options, result, until, until_ready, waiting};
use crate::app::{TestApp, decoded};
use crate::fake_engine::colour;

/// What it refuses: the first image that it is offered.
struct Refusals {
    name: OnceLock<String>,
    /// The status for it.
    answers: AtomicU16,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { name: OnceLock::new(), answers: AtomicU16::new(413) }
    }
}

/// As an S3 store answers writes; nothing is kept.
async fn answer(State(refusals): State<Arc<Refusals>>, request: Request) -> Response {
    let name = request.uri().path().to_owned();
    assert_eq!(request.method(), Method::PUT, "{name} is only written");
    if name.contains("/results/") && refusals.name.get_or_init(|| name.clone()) == &name {
        let status = StatusCode::from_u16(refusals.answers.load(Ordering::Acquire)).expect("a status");
        return (status, [("etag", "\"one\"")]).into_response();
    }
    [("etag", "\"one\"")].into_response()
}

async fn bucket(refusals: &Arc<Refusals>) -> ResultBucket {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().fallback(answer).with_state(Arc::clone(refusals));
    tokio::spawn(async move { axum::serve(listener, router).await });
    // The store's own HTTP client, which the program does not use, wants one of the process. Another test may have chosen it.
    drop(default_provider().install_default());
    let settings = AmazonS3Builder::new().with_bucket_name("images").with_region("test-1").with_endpoint(endpoint);
    let clients = ClientOptions::new().with_allow_http(true);
    let store = settings.with_skip_signature(true).with_client_options(clients).build().expect("a store");
    let objects = Objects::over(Arc::new(store), None, PREFIX);
    ResultBucket { objects, waiting_bytes_max: u64::MAX, redirect_life: None }
}

/// More images than are sent at once, found on the disk by a worker that is told of the bucket.
async fn several_wait(refusals: &Arc<Refusals>) -> (TestApp, Vec<String>) {
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for seed in 1..=6 {
        ids.push(generated(&app, seed).await);
    }
    app.stop_cleanly().await;
    (app.restart(options(bucket(refusals).await)).await, ids)
}

/// Waits until the worker says this of what works less well; the empty text stands for nothing.
async fn until_degraded(app: &TestApp, is_so: impl Fn(&str) -> bool) {
    let started = Instant::now();
    loop {
        let ready = until_ready(app, StatusCode::OK).await.json();
        if is_so(ready["degraded"][0].as_str().unwrap_or_default()) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{ready}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_image_that_a_bucket_refuses_keeps_no_other() {
    let refusals = Arc::new(Refusals::default());
    let (app, ids) = several_wait(&refusals).await;
    until("moved but for one", || waiting(&app) == 1).await;
    let refused = ids.iter().position(|id| file_of(&app, id).exists()).expect("one waits");
    assert_eq!(refusals.name.get(), Some(&format!("/images/{}", name_of(&ids[refused]))));
    let said = "the bucket does not accept some of the images: 1 wait on the disk";
    until_degraded(&app, |degraded| degraded == said).await;
    assert_eq!(decoded(&result(&app, &ids[refused]).await.bytes), (64, 64, colour(1 + refused as u64)));
    generated(&app, 7).await;
    assert_eq!(waiting(&app), 1, "others need no way over the disk");
    std::fs::remove_file(file_of(&app, &ids[refused])).expect("there");
    until_degraded(&app, str::is_empty).await;
}

#[tokio::test]
async fn a_bucket_that_wants_fewer_requests_refuses_no_image() {
    let refusals = Arc::new(Refusals { answers: AtomicU16::new(429), ..Refusals::default() });
    let (app, _) = several_wait(&refusals).await;
    until_degraded(&app, |degraded| degraded.starts_with("the bucket does not accept images: ")).await;
    refusals.answers.store(200, Ordering::Release);
    until("empty", || waiting(&app) == 0).await;
}
