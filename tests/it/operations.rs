//! What operators see: health, metrics, a full queue, shutdown.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;

use crate::app::{Options, TestApp, image, request};
use crate::fake_engine::EngineControl;

#[tokio::test]
async fn a_full_queue_refuses_at_once_with_a_time_to_retry() {
    let app = TestApp::with(Options { jobs_max: 4, ..Options::default() }).await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    let second = app.submit(&image(2)).await;
    // The other half is for other keys.
    let answer = app.post(&image(3)).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "queue_full"));
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    let path = "/v1/inference/image";
    for (key, status) in [(&app.keys.all, 202), (&app.keys.other_inference, 202), (&app.keys.all, 429)] {
        assert_eq!(app.send(request("POST", path, Some(key), Some(&image(4)))).await.status.as_u16(), status);
    }
    app.control.release();
    app.until_status(&first, "succeeded").await;
    app.until_status(&second, "succeeded").await;
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
    let third = app.submit(&image(3)).await;
    app.until_status(&third, "succeeded").await;
}

#[tokio::test]
async fn not_ready_before_the_engine_has_warmed_up() {
    let control = EngineControl::default();
    control.hold_from_the_start();
    let app = TestApp::with(Options { control, waits_for_ready: false, ..Options::default() }).await;
    app.control.held().await;
    assert_eq!(app.get("/healthz").await.json(), json!({ "status": "ok" }));
    let early = app.get("/readyz").await;
    assert_eq!((early.status, early.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not_ready"));
    assert_eq!(app.post(&image(1)).await.code(), "model_unavailable");
    app.control.release();
    app.until_availability(fluxserve::catalog::Availability::Ready).await;
    assert_eq!(app.get("/readyz").await.json(), json!({ "status": "ready" }));
}

#[tokio::test]
async fn not_ready_when_the_database_does_not_accept_writes() {
    let app = TestApp::start().await;
    app.store.pool().close().await;
    let answer = app.get("/readyz").await;
    assert_eq!(answer.code(), "not_ready");
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn readiness_is_checked_at_most_once_a_second() {
    let app = TestApp::start().await;
    let asked = futures_util::future::join_all((0..50).map(|_| app.get("/readyz"))).await;
    assert!(asked.iter().all(|answer| answer.status == StatusCode::OK));
    app.store.pool().close().await;
    let started = std::time::Instant::now();
    let answer = app.get("/readyz").await;
    assert!(answer.status == StatusCode::OK || started.elapsed() > Duration::from_millis(500), "the outcome is reused");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(app.get("/readyz").await.code(), "not_ready");
}

#[tokio::test]
async fn draining_refuses_new_jobs_and_finishes_the_rest() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.jobs.drain();
    let answer = app.post(&image(2)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "draining"));
    assert_ne!(answer.header("retry-after"), "");
    assert_eq!(app.get("/readyz").await.code(), "not_ready");
    assert_eq!(app.jobs.wait_until_idle(Duration::from_millis(50)).await, 1);
    app.control.release();
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}")).await.json()["status"], "succeeded");
}

#[tokio::test]
async fn metrics_are_only_at_their_own_address() {
    let app = TestApp::start().await;
    app.post_with(&image(1), &[("prefer", "wait=20")]).await;
    // A peer on this machine may be a proxy: one that adds no header looks like a client.
    for host in ["localhost:8080", "127.0.0.1:9", "worker.test"] {
        let mut request = request("GET", "/metrics", None, None);
        request.headers_mut().insert("host", host.parse().expect("a value"));
        assert_eq!(app.send(request).await.code(), "not_found", "{host}");
    }
    let answer = app.send_to(&app.metrics, "192.0.2.1:40000", request("GET", "/metrics", None, None)).await;
    assert_eq!(answer.status, StatusCode::OK);
    for name in [
        "fluxserve_http_requests_total",
        "fluxserve_jobs_total",
        "fluxserve_jobs_in_time_total",
        "fluxserve_step_tokens",
        "fluxserve_queue_depth_jobs",
    ] {
        assert!(answer.text().contains(name), "{name} is missing");
    }
}

#[tokio::test]
async fn the_catalog_needs_no_key() {
    let app = TestApp::start().await;
    let models = app.send(request("GET", "/v1/inference/models", None, None)).await.json();
    let ids: Vec<&str> =
        models["models"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    let family = ["Canny-dev", "Depth-dev", "Fill-dev", "Kontext-dev", "Krea-dev", "dev", "schnell"];
    let family = family.map(|name| format!("black-forest-labs/FLUX.1-{name}"));
    assert_eq!((ids[0], &ids[1..]), ("fluxserve/flux-shapes", &family.each_ref().map(String::as_str)[..]));
    let dev = &models["models"][6];
    assert_eq!((&dev["min_input_images"], &dev["max_input_images"]), (&json!(0), &json!(0)));
    assert_eq!(dev["max_prompt_chars"], 2048);
    let defaults = json!({ "width": 512, "height": 512, "steps": 30, "guidance": 3.5 });
    assert_eq!(dev["parameter_defaults"], defaults);
    assert_eq!(dev["parameter_limits"]["pixels_max"], 4_194_304);
    let runtime = app.send(request("GET", "/v1/inference/runtime/models", None, None)).await.json();
    let state = |id: &str, replicas: usize| json!({ "id": id, "available": replicas > 0, "ready_replicas": replicas, "desired_replicas": replicas });
    let served = std::iter::once(state("fluxserve/flux-shapes", 1));
    let expected: Vec<_> = served.chain(family.iter().map(|id| state(id, 0))).collect();
    assert_eq!(runtime, json!({ "models": expected }));
}

#[tokio::test]
async fn an_unsupported_model_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    let mut body = image(1);
    body["model"] = json!("black-forest-labs/FLUX.2-klein-4B");
    let answer = app.post(&body).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "model_unavailable"));
    let problem = answer.json();
    let detail = problem["detail"].as_str().expect("a sentence");
    assert!(detail.starts_with("the model is not supported yet: it "), "{detail}");
    assert_eq!(answer.header("retry-after"), "", "waiting does not help");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic under this lock").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn logs_contain_no_keys_prompts_or_links() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone()).finish();
    // For the engine's thread, too. It also gets the lines of other tests, whose prompts and keys differ.
    tracing::subscriber::set_global_default(subscriber).expect("no other test sets up logging");
    let app = TestApp::start().await;
    let mut body = image(1);
    body["prompt"] = json!("an unmistakable capybara");
    let job = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
    let url = job["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test");
    assert_eq!(app.send(request("GET", url, None, None)).await.status, StatusCode::OK);
    body["width"] = json!(1);
    app.post(&body).await;
    let (_, signature) = url.split_once("signature=").expect("a signature");
    let written = String::from_utf8(log.0.lock().expect("no panic under this lock").clone()).expect("text");
    assert!(written.contains("answered") && written.contains("job ended"), "{written}");
    for secret in ["capybara", signature, &app.keys.inference, &app.keys.inference[13..]] {
        assert!(!written.contains(secret), "{secret} is in the log");
    }
}
