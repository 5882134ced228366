//! The routes for clients of OpenAI's API. `scripts/openai-test.sh` tests them with the real clients.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::domain::engine::EngineError;
use fluxserve::domain::spec::SEED_MAX;
use futures_util::stream;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::app::{Answer, MODEL, Options, TestApp, decoded, managing, request};
use crate::fake_engine::{Call, Fault, colour};

const PATH: &str = "/v1/images/generations";
const DEV: &str = "black-forest-labs/FLUX.1-dev";

/// A request for small images that are generated at once, with additional fields.
fn images(more: &Value) -> Value {
    let mut body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2 });
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

async fn generate(app: &TestApp, more: &Value) -> Answer {
    app.send(request("POST", PATH, Some(&app.keys.inference), Some(&images(more)))).await
}

fn bearer(key: &str, body: &Value) -> Request<Body> {
    let mut request = request("POST", PATH, None, Some(body));
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().expect("a value"));
    request
}

/// The states of all jobs of the default key, the newest first.
async fn statuses(app: &TestApp) -> Vec<String> {
    let list = app.get("/v1/inference/jobs").await.json();
    let jobs = list["data"].as_array().expect("jobs");
    jobs.iter().map(|job| job["status"].as_str().expect("a word").to_owned()).collect()
}

async fn until_ended(app: &TestApp) {
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
}

fn embedded(image: &Value) -> Vec<u8> {
    STANDARD.decode(image["b64_json"].as_str().expect("an image")).expect("base64")
}

#[track_caller]
fn assert_error(answer: &Answer, status: u16, kind: &str, code: &str) -> Value {
    let error = answer.openai_error();
    let seen = (answer.status.as_u16(), error["type"].as_str(), error["code"].as_str());
    assert_eq!(seen, (status, Some(kind), Some(code)), "{error}");
    error
}

#[tokio::test]
async fn an_image_is_embedded_in_the_answer() {
    let app = TestApp::start().await;
    let answer = app.send(bearer(&app.keys.inference, &images(&json!({ "seed": 5, "user": "u" })))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["output_format"], &body["size"]), (&json!("png"), &json!("64x64")));
    assert_eq!(body["created"], app.clock_now().unix_timestamp());
    let data = body["data"].as_array().expect("images");
    assert_eq!(data.len(), 1);
    assert!(data[0].get("url").is_none() && data[0]["seed"] == 5, "{body}");
    let bytes = embedded(&data[0]);
    assert_eq!((&bytes[1..4], decoded(&bytes)), (b"PNG".as_slice(), (64, 64, colour(5))));
    let id = data[0]["job_id"].as_str().expect("an id");
    let job = app.get(&format!("/v1/inference/jobs/{id}")).await.json();
    assert_eq!((&job["status"], &job["seed"]), (&json!("succeeded"), &json!(5)));
    assert!(!job.to_string().contains("\"u\""), "the user is not stored: {job}");
}

#[tokio::test]
async fn an_image_is_returned_as_a_link_that_needs_no_key() {
    let app = TestApp::start().await;
    let body = generate(&app, &json!({ "seed": 5, "response_format": "url" })).await.json();
    assert!(body["data"][0].get("b64_json").is_none(), "{body}");
    let url = body["data"][0]["url"].as_str().expect("a link");
    let path = url.strip_prefix("http://worker.test").expect("the worker's own address");
    let image = app.send(request("GET", path, None, None)).await;
    assert_eq!((image.status, image.header("content-type")), (StatusCode::OK, "image/png"));
    assert_eq!(decoded(&image.bytes), (64, 64, colour(5)));
}

#[tokio::test]
async fn each_image_has_the_next_seed() {
    let app = TestApp::start().await;
    let body = generate(&app, &json!({ "n": 3, "seed": 7 })).await.json();
    let data = body["data"].as_array().expect("images");
    assert_eq!(data.iter().map(|image| image["seed"].as_u64()).collect::<Vec<_>>(), [Some(7), Some(8), Some(9)]);
    for (image, seed) in data.iter().zip(7..) {
        assert_eq!(decoded(&embedded(image)), (64, 64, colour(seed)));
    }
    let body = generate(&app, &json!({ "n": 2, "seed": SEED_MAX })).await.json();
    assert_eq!((&body["data"][0]["seed"], &body["data"][1]["seed"]), (&json!(SEED_MAX), &json!(0)));
    let body = generate(&app, &json!({ "n": 2 })).await.json();
    let random = body["data"][0]["seed"].as_u64().expect("a seed");
    assert_eq!(body["data"][1]["seed"], (random + 1) % (SEED_MAX + 1));
    let other = generate(&app, &json!({})).await.json();
    assert_ne!(other["data"][0]["seed"], random, "each request gets a random seed");
}

#[tokio::test]
async fn sizes_and_formats_are_as_requested() {
    let app = TestApp::start().await;
    for (size, width, height) in [(json!("auto"), 128, 128), (json!(null), 128, 128), (json!("80x64"), 80, 64)] {
        let body = generate(&app, &json!({ "size": size, "seed": 1 })).await.json();
        assert_eq!(body["size"], format!("{width}x{height}"), "{size}");
        assert_eq!(decoded(&embedded(&body["data"][0])), (width, height, colour(1)));
    }
    for (format, signature) in [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff\xe0"), ("webp", b"RIFF")] {
        let body = generate(&app, &json!({ "output_format": format })).await.json();
        assert_eq!(body["output_format"], format);
        assert_eq!(&embedded(&body["data"][0])[..4], signature, "{format}");
    }
}

#[tokio::test]
async fn every_bad_field_is_the_param() {
    let app = TestApp::start().await;
    let cases = [
        ("prompt", json!("")),
        ("prompt", json!(null)),
        ("prompt", json!("x".repeat(2049))),
        ("model", json!(null)),
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!("2")),
        ("size", json!("100x64")),
        ("size", json!("64x48")),
        ("size", json!("512x512")),
        ("size", json!("64")),
        ("size", json!("large")),
        ("size", json!(64)),
        ("size", json!("4294967360x64")),
        ("response_format", json!("png")),
        ("output_format", json!("gif")),
        ("user", json!(1)),
        ("safety_identifier", json!(1)),
        ("seed", json!(SEED_MAX + 1)),
        ("seed", json!(u64::MAX)),
        ("steps", json!(0)),
        ("guidance", json!(31)),
        ("negative_prompt", json!(1)),
        ("quality", json!("ultra")),
        ("quality", json!(1)),
        ("background", json!("transparent")),
        ("style", json!("baroque")),
        ("moderation", json!("none")),
        ("stream", json!(1)),
        ("stream", json!("false")),
        ("partial_images", json!(1)),
        ("partial_images", json!(4)),
        ("output_compression", json!(50)),
        ("width", json!(64)),
        ("svg", json!({})),
    ];
    for (field, value) in cases {
        let answer = generate(&app, &json!({ field: value })).await;
        let error = assert_error(&answer, 400, "invalid_request_error", "invalid_request");
        assert_eq!(error["param"], field, "{value}: {error}");
        let message = error["message"].as_str().expect("words");
        assert!(message.starts_with(&format!("`{field}` ")), "{message}");
    }
    let both = generate(&app, &json!({ "size": "48x65", "steps": 0 })).await.openai_error();
    let message = "`size` width must be a multiple of 16 from 64 to 256, not 48; \
                   `size` height must be a multiple of 16 from 64 to 256, not 65; \
                   `steps` must be from 1 to 100, not 0";
    assert_eq!((&both["param"], &both["message"]), (&json!("size"), &json!(message)));
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn options_that_state_the_default_are_accepted() {
    let app = TestApp::start().await;
    let auto = json!({ "quality": "auto", "background": "auto", "style": "auto", "moderation": "auto" });
    let usual = json!({
        "quality": "standard", "background": "opaque", "stream": false, "partial_images": 0, "safety_identifier": "s",
    });
    let of_gateways =
        json!({ "quality": "hd", "style": "vivid", "moderation": "low", "output_compression": 100, "user": "u" });
    let names = ["quality", "background", "style", "moderation", "stream", "partial_images", "output_compression"];
    let nulls: Value = names.iter().map(|name| ((*name).to_owned(), json!(null))).collect();
    for fields in [auto, usual, of_gateways, nulls] {
        let answer = generate(&app, &fields).await;
        assert_eq!(answer.status, StatusCode::OK, "{fields}: {}", answer.text());
    }
}

#[tokio::test]
async fn headers_of_openais_clients_are_accepted() {
    let app = TestApp::start().await;
    let body = images(&json!({ "seed": 3 }));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut request = bearer(&app.keys.all, &body);
        for (name, value) in [
            ("accept", "application/json"),
            ("user-agent", "OpenAI/Python 3.57.0"),
            ("x-stainless-retry-count", "1"),
            ("openai-organization", "org"),
            ("idempotency-key", "stainless-python-retry-1"),
        ] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let answer = app.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        ids.push(answer.json()["data"][0]["job_id"].clone());
    }
    assert_ne!(ids[0], ids[1], "every request generates an image");
}

#[tokio::test]
async fn errors_of_extractors_and_layers_have_openais_format() {
    let app = TestApp::start().await;
    let wrong = app.send(bearer("rgpu_wrong", &images(&json!({})))).await;
    let error = assert_error(&wrong, 401, "authentication_error", "unauthorized");
    assert_eq!(error["param"], json!(null));
    assert!(wrong.header("www-authenticate").starts_with("Bearer"));
    let kubernetes = app.send(bearer(&app.keys.kubernetes, &images(&json!({})))).await;
    assert_error(&kubernetes, 403, "permission_error", "scope_forbidden");

    let key = &app.keys.inference;
    let raw = |content_type: &str, body: Body| {
        let request = Request::post(PATH)
            .header("host", "worker.test")
            .header("x-api-key", key)
            .header("content-type", content_type);
        request.body(body).expect("a request")
    };
    let invalid = "invalid_request_error";
    assert_error(&app.send(raw("application/json", Body::from("{"))).await, 400, invalid, "malformed_json");
    assert_error(&app.send(raw("text/plain", Body::from("{}"))).await, 415, invalid, "unsupported_media_type");
    let large = Body::from(" ".repeat(20_000));
    assert_error(&app.send(raw("application/json", large)).await, 413, invalid, "body_too_large");
    let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    assert_error(&app.send(raw("application/json", stalled)).await, 408, invalid, "body_timeout");

    let method = app.send(request("PUT", PATH, Some(key), None)).await;
    assert_error(&method, 405, invalid, "method_not_allowed");
    assert_eq!(method.header("allow"), "POST");
    let upscale = app.send(request("POST", "/v1/images/upscale", Some(key), None)).await;
    assert_error(&upscale, 404, invalid, "not_found");
}

#[tokio::test]
async fn errors_of_jobs_have_openais_format() {
    let app = TestApp::start().await;
    let unknown = generate(&app, &json!({ "model": "dall-e-3" })).await;
    assert_error(&unknown, 404, "invalid_request_error", "model_not_found");
    let unserved = generate(&app, &json!({ "model": DEV })).await;
    assert_error(&unserved, 503, "server_error", "model_unavailable");

    let cookie = app.sign_in().await;
    let new = json!({ "name": "test", "scope": { "inference": true }, "limits": { "requests_per_minute": 1 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&new))).await.json();
    let key = made["key"].as_str().expect("a value");
    assert_eq!(app.send(bearer(key, &images(&json!({})))).await.status, StatusCode::OK);
    let limited = app.send(bearer(key, &images(&json!({})))).await;
    assert_error(&limited, 429, "rate_limit_error", "rate_limited");
    assert!(limited.header("retry-after").parse::<u64>().is_ok());
    assert!(limited.header("ratelimit").starts_with("\"requests\""));

    app.control.on_next_admit(Fault::Error(EngineError::Request("the prompt is cursed".into())));
    let error = assert_error(&generate(&app, &json!({})).await, 500, "server_error", "job_failed");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("the prompt is cursed")), "{error}");

    app.jobs.drain();
    let draining = generate(&app, &json!({})).await;
    assert_error(&draining, 503, "server_error", "draining");
    assert_eq!(draining.header("retry-after"), "30");
}

#[tokio::test]
async fn other_routes_keep_the_problem_format() {
    let app = TestApp::start().await;
    assert_eq!(app.send(request("GET", "/v1/inference/jobs", None, None)).await.code(), "unauthorized");
    assert_eq!(app.get("/v1/nothing").await.code(), "not_found");
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_all_its_images() {
    let app = TestApp::start().await;
    app.control.hold();
    let body = images(&json!({ "n": 6, "seed": 1 }));
    let waiting = tokio::spawn(app.router.clone().oneshot(bearer(&app.keys.inference, &body)));
    app.control.held().await;
    while statuses(&app).await.len() < 6 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    waiting.abort();
    drop(waiting.await);
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"; 6]);
    let finished = |call: &Call| matches!(call, Call::Finish(_));
    assert!(!app.control.calls().iter().any(finished), "{:?}", app.control.calls());
}

#[tokio::test]
async fn all_images_are_accepted_or_none_is() {
    // A key gets half of the queue.
    let app = TestApp::with(Options { jobs_max: 4, ..Options::default() }).await;
    app.control.hold();
    let full = generate(&app, &json!({ "n": 3 })).await;
    assert_error(&full, 429, "rate_limit_error", "queue_full");
    assert!(full.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"; 2]);
    assert_eq!(generate(&app, &json!({ "n": 2 })).await.status, StatusCode::OK, "the queue has room again");
}

#[tokio::test]
async fn an_image_that_fails_takes_the_others_with_it() {
    let app = TestApp::start().await;
    app.control.hold();
    app.control.on_next_admit(Fault::Error(EngineError::Request("no".into())));
    // The others are held before their first step.
    let failed = generate(&app, &json!({ "n": 3 })).await;
    assert_error(&failed, 500, "server_error", "job_failed");
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled", "canceled", "failed"]);
}

#[tokio::test]
async fn after_the_maximum_wait_all_images_are_canceled() {
    let mut options = Options::default();
    options.http.wait_max = Duration::from_millis(300);
    let app = TestApp::with(options).await;
    app.control.hold();
    let late = generate(&app, &json!({ "n": 2 })).await;
    assert_error(&late, 504, "server_error", "deadline_exceeded");
    assert_eq!(late.header("x-should-retry"), "false");
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"; 2]);
}

#[tokio::test]
async fn the_request_deadline_cancels_them_too() {
    let mut options = Options::default();
    options.http.request_deadline = Duration::from_millis(500);
    let app = TestApp::with(options).await;
    app.control.hold();
    assert_error(&generate(&app, &json!({ "n": 2 })).await, 504, "server_error", "deadline_exceeded");
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"; 2]);
}

#[tokio::test]
async fn a_canceled_job_must_not_be_retried() {
    let app = TestApp::start().await;
    app.control.hold();
    let fields = json!({ "n": 1 });
    let (answer, ()) = tokio::join!(generate(&app, &fields), async {
        app.control.held().await;
        let list = app.get("/v1/inference/jobs").await.json();
        let path = format!("/v1/inference/jobs/{}", list["data"][0]["job_id"].as_str().expect("an id"));
        tokio::join!(app.delete(&path), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            app.control.release();
        });
    });
    assert_error(&answer, 409, "invalid_request_error", "job_canceled");
    assert_eq!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn only_served_models_are_listed() {
    let app = TestApp::start().await;
    let get = async |path: &str| app.send(request("GET", path, None, None)).await;
    let list = get("/v1/models").await.json();
    let model = &list["data"][0];
    assert_eq!((&list["object"], list["data"].as_array().map(Vec::len)), (&json!("list"), Some(1)));
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!(MODEL), &json!("model"), &json!("fluxserve"))
    );
    assert!(model["created"].as_i64().is_some_and(|created| created <= app.clock_now().unix_timestamp()));
    for path in ["/v1/models/fluxserve%2Fflux-shapes", "/v1/models/fluxserve/flux-shapes"] {
        assert_eq!(&get(path).await.json(), model, "{path}");
    }
    for path in [&format!("/v1/models/{DEV}"), "/v1/models/nobody", "/v1/models/%FF", "/v1/models/a/b/c"] {
        assert_error(&get(path).await, 404, "invalid_request_error", "model_not_found");
    }
}
