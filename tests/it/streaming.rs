//! OpenAI's routes with `stream`: what its clients get, event by event. `scripts/openai-test.sh` tests them with the real
//! clients.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::domain::engine::EngineError;
use fluxserve::jobs::WATCHES_PER_OWNER_MAX;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::app::{Answer, MODEL, Options, TestApp, decoded, image, managing, request};
use crate::documented;
use crate::edits::{data_url, png};
use crate::events::EventStream;
use crate::fake_engine::{Call, Fault, PREVIEW_RED_PER_STEP, colour};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that the test reads.
struct Stream {
    head: Answer,
    body: Body,
    unread: String,
    comments: usize,
}

impl Stream {
    async fn open(app: &TestApp, path: &str, body: &Value) -> Self {
        Self::of(app, request("POST", path, Some(&app.keys.inference), Some(body))).await
    }

    async fn of(app: &TestApp, mut request: Request<Body>) -> Self {
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 40000))));
        let path = request.uri().path().to_owned();
        let response = app.router.clone().oneshot(request).await.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let head = Answer { status: parts.status, headers: parts.headers, bytes: Vec::new() };
        assert_eq!((head.status, head.header("content-type")), (StatusCode::OK, "text/event-stream"));
        assert_eq!((head.header("cache-control"), head.header("x-accel-buffering")), ("no-store", "no"));
        documented::check(&Method::POST, &path, &head);
        Self { head, body, unread: String::new(), comments: 0 }
    }

    /// Reads more of the answer; `false` at its end.
    async fn read(&mut self) -> bool {
        let frame = timeout(PATIENCE, self.body.frame()).await.expect("more in time");
        let Some(frame) = frame else { return false };
        let bytes = frame.expect("a complete body").into_data().expect("no trailers");
        self.unread.push_str(std::str::from_utf8(&bytes).expect("text"));
        true
    }

    /// The next event with its data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.unread = rest;
                if block.starts_with(':') {
                    self.comments += 1;
                    continue;
                }
                // OpenAI's clients fail after other fields.
                let (name, data) = block.split_once('\n').expect("two lines");
                let data = data.strip_prefix("data: ").expect("data");
                let name = name.strip_prefix("event: ").expect("a name");
                return Some((name.to_owned(), serde_json::from_str(data).expect("JSON on one line")));
            }
            if !self.read().await {
                return None;
            }
        }
    }

    async fn rest(&mut self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            assert!(event.0 == "error" || event.1["type"] == event.0.as_str(), "{event:?}");
            events.push(event);
        }
        events
    }
}

/// A request for a small image in so many steps, with additional fields.
fn streamed(steps: u32, more: &Value) -> Value {
    let mut body = json!({
        "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": steps, "seed": 5, "stream": true,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    body
}

fn embedded(event: &Value) -> Vec<u8> {
    STANDARD.decode(event["b64_json"].as_str().expect("an image")).expect("base64")
}

/// The size of an event's image, and the red of its first pixel.
fn red(event: &Value) -> (u32, u32, u8) {
    let (width, height, [red, ..]) = decoded(&embedded(event));
    (width, height, red)
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// The error that ends a stream, after a check of its form.
#[track_caller]
fn error_of(events: &[(String, Value)]) -> &Value {
    let (name, data) = events.last().expect("an event");
    assert_eq!((name.as_str(), &data["type"]), ("error", &json!("error")));
    let error = data["error"].as_object().expect("an error");
    let mut fields: Vec<&str> = error.keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["code", "message", "param", "type"]);
    &data["error"]
}

async fn until_ended(app: &TestApp) {
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
}

/// The states of all jobs of the default key, the newest first.
async fn statuses(app: &TestApp) -> Vec<String> {
    let list = app.get("/v1/inference/jobs").await.json();
    let jobs = list["data"].as_array().expect("jobs");
    jobs.iter().map(|job| job["status"].as_str().expect("a word").to_owned()).collect()
}

#[tokio::test]
async fn without_partial_images_a_stream_is_one_event() {
    let app = TestApp::start().await;
    for more in [json!({}), json!({ "partial_images": 0 }), json!({ "partial_images": null })] {
        let events = Stream::open(&app, GENERATIONS, &streamed(4, &more)).await.rest().await;
        assert_eq!(names(&events), ["image_generation.completed"]);
        let event = &events[0].1;
        assert_eq!(decoded(&embedded(event)), (64, 64, colour(5)));
        assert_eq!((&event["size"], &event["output_format"]), (&json!("64x64"), &json!("png")));
        assert_eq!((&event["quality"], &event["background"]), (&json!("auto"), &json!("opaque")));
        assert_eq!((&event["seed"], event.get("partial_image_index")), (&json!(5), None));
        assert_eq!(event["created_at"], app.clock_now().unix_timestamp());
        let usage = &event["usage"];
        let tokens = |field: &str| usage[field].as_u64().expect("tokens");
        assert_eq!((tokens("output_tokens"), tokens("input_tokens") + 16), (16, tokens("total_tokens")));
        assert_eq!(usage["input_tokens_details"]["image_tokens"], 0);
        assert_eq!(usage["input_tokens_details"]["text_tokens"], usage["input_tokens"]);
        let id = event["job_id"].as_str().expect("an id");
        assert_eq!(app.get(&format!("/v1/inference/jobs/{id}")).await.json()["status"], "succeeded");
    }
    assert!(!app.control.calls().contains(&Call::Draft(5)), "nobody asked for drafts");
}

#[tokio::test]
async fn partial_images_come_at_evenly_spaced_steps_in_full_size() {
    let app = TestApp::start().await;
    for (partial_images, steps) in [(1, vec![2_u8]), (2, vec![1, 2]), (3, vec![1, 2, 3])] {
        let more = json!({ "partial_images": partial_images });
        let events = Stream::open(&app, GENERATIONS, &streamed(4, &more)).await.rest().await;
        let (completed, partial) = events.split_last().expect("events");
        for (index, ((name, event), step)) in partial.iter().zip(&steps).enumerate() {
            assert_eq!(
                (name.as_str(), &event["partial_image_index"]),
                ("image_generation.partial_image", &json!(index))
            );
            assert_eq!(red(event), (64, 64, step * PREVIEW_RED_PER_STEP));
            assert_eq!((&event["size"], &event["output_format"]), (&json!("64x64"), &json!("png")));
            assert_eq!((event.get("usage"), &event["job_id"]), (None, &completed.1["job_id"]));
        }
        assert_eq!(partial.len(), steps.len());
        assert_eq!(completed.0, "image_generation.completed");
        assert_eq!(decoded(&embedded(&completed.1)), (64, 64, colour(5)));
    }
}

#[tokio::test]
async fn an_image_of_few_steps_has_fewer_partial_images() {
    let app = TestApp::start().await;
    for (steps, count) in [(1, 0), (2, 1), (3, 2)] {
        let body = streamed(steps, &json!({ "partial_images": 3 }));
        let events = Stream::open(&app, GENERATIONS, &body).await.rest().await;
        assert_eq!(events.len(), count + 1, "{steps} steps");
    }
}

#[tokio::test]
async fn a_preview_in_the_images_size_stands_in_for_a_draft() {
    let app = TestApp::start().await;
    app.control.on_next_draft(Fault::Error(EngineError::OutOfMemory("told to".into())));
    let body = streamed(4, &json!({ "partial_images": 1, "output_format": "webp" }));
    let events = Stream::open(&app, GENERATIONS, &body).await.rest().await;
    assert_eq!(names(&events), ["image_generation.partial_image", "image_generation.completed"]);
    assert_eq!(red(&events[0].1), (64, 64, 2 * PREVIEW_RED_PER_STEP));
    assert_eq!(&embedded(&events[0].1)[..4], b"RIFF");
}

#[tokio::test]
async fn an_edit_is_streamed_under_its_own_names() {
    let app = TestApp::start().await;
    let teal = png([10, 120, 130, 255]);
    let body = streamed(10, &json!({ "partial_images": 1, "images": [{ "image_url": data_url(&teal) }] }));
    let events = Stream::open(&app, EDITS, &body).await.rest().await;
    assert_eq!(names(&events), ["image_edit.partial_image", "image_edit.completed"]);
    // Six steps of ten are run.
    assert_eq!(red(&events[0].1), (64, 64, 3 * PREVIEW_RED_PER_STEP));
    assert_eq!(decoded(&embedded(&events[1].1)), (64, 64, [10, 120, 130]));
}

#[tokio::test]
async fn a_job_that_fails_ends_its_stream_with_an_error() {
    let app = TestApp::start().await;
    app.control.hold();
    let mut stream = Stream::open(&app, GENERATIONS, &streamed(4, &json!({ "partial_images": 3 }))).await;
    app.control.held().await;
    app.control.let_pass(1);
    assert_eq!(stream.next().await.map(|(name, _)| name).as_deref(), Some("image_generation.partial_image"));
    app.control.held().await;
    app.control.on_next_step(Fault::Error(EngineError::Request("the prompt is cursed".into())));
    app.control.release();
    let events = stream.rest().await;
    let error = error_of(&events);
    assert_eq!((events.len(), &error["code"], &error["type"]), (1, &json!("job_failed"), &json!("server_error")));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("the prompt is cursed")), "{error}");
}

#[tokio::test]
async fn a_stream_has_an_end_and_heartbeats_until_then() {
    let mut options = Options::default();
    (options.http.event_heartbeat, options.http.wait_max) = (Duration::from_millis(50), Duration::from_millis(500));
    // Shorter than a stream: the deadline only applies up to the first byte.
    options.http.request_deadline = Duration::from_millis(300);
    let app = TestApp::with(options).await;
    app.control.hold();
    let mut stream = Stream::open(&app, GENERATIONS, &streamed(4, &json!({}))).await;
    let events = stream.rest().await;
    assert_eq!((events.len(), &error_of(&events)["code"]), (1, &json!("deadline_exceeded")));
    assert!(stream.comments >= 3, "{}", stream.comments);
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"]);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_image() {
    let app = TestApp::start().await;
    app.control.hold();
    let mut stream = Stream::open(&app, GENERATIONS, &streamed(4, &json!({ "partial_images": 3 }))).await;
    app.control.held().await;
    app.control.let_pass(1);
    stream.next().await.expect("a partial image");
    app.control.held().await;
    drop(stream);
    app.control.release();
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["canceled"]);
    assert!(app.control.calls().contains(&Call::Release(5)), "{:?}", app.control.calls());
}

#[tokio::test]
async fn a_reader_that_is_slow_misses_nothing_and_stops_nobody() {
    let app = TestApp::start().await;
    let mut stream = Stream::open(&app, GENERATIONS, &streamed(4, &json!({ "partial_images": 3 }))).await;
    until_ended(&app).await;
    assert_eq!(statuses(&app).await, ["succeeded"]);
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2 });
    let other = app.send(request("POST", GENERATIONS, Some(&app.keys.inference), Some(&body))).await;
    assert_eq!(other.status, StatusCode::OK);
    let events = stream.rest().await;
    assert_eq!(events.len(), 4);
    assert_eq!(events.last().map(|(name, _)| name.as_str()), Some("image_generation.completed"));
}

#[tokio::test]
async fn a_stop_of_the_worker_ends_a_stream() {
    let app = TestApp::start().await;
    app.control.hold();
    let mut stream = Stream::open(&app, GENERATIONS, &streamed(4, &json!({}))).await;
    app.control.held().await;
    app.jobs.drain();
    app.jobs.close();
    let events = stream.rest().await;
    assert_eq!(error_of(&events)["code"], "draining");
    app.control.release();
}

#[tokio::test]
async fn streams_of_a_key_are_limited_before_a_job_begins() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let mut streams = Vec::new();
    for _ in 0..WATCHES_PER_OWNER_MAX {
        streams.push(EventStream::open(&app, &path, &[]).await);
    }
    let body = streamed(2, &json!({}));
    let refused = app.send(request("POST", GENERATIONS, Some(&app.keys.inference), Some(&body))).await;
    let error = refused.openai_error();
    assert_eq!((refused.status, &error["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("too_many_streams")));
    assert_eq!(statuses(&app).await.len(), 1, "no job was accepted");
    streams.pop();
    let mut stream = Stream::open(&app, GENERATIONS, &body).await;
    app.control.release();
    assert_eq!(names(&stream.rest().await), ["image_generation.completed"]);
}

#[tokio::test]
async fn what_a_stream_cannot_do_is_refused_by_name() {
    let app = TestApp::start().await;
    let cases = [
        (json!({ "n": 2 }), "n", "must be 1 with `stream`"),
        (json!({ "response_format": "url" }), "response_format", "must be `b64_json` with `stream`"),
        (json!({ "partial_images": 4 }), "partial_images", "must be from 0 to 3"),
        (json!({ "partial_images": -1 }), "partial_images", "must be a whole number, not negative"),
        (json!({ "stream": null, "partial_images": 1 }), "partial_images", "needs `stream`: true"),
        (json!({ "stream": "true" }), "stream", "must be true or false"),
        (json!({ "steps": 0 }), "steps", "must be from 1 to 100"),
    ];
    for (more, field, reason) in cases {
        let body = streamed(2, &more);
        let answer = app.send(request("POST", GENERATIONS, Some(&app.keys.inference), Some(&body))).await;
        let error = answer.openai_error();
        assert_eq!((answer.status, &error["param"]), (StatusCode::BAD_REQUEST, &json!(field)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn answers_say_how_many_requests_are_left() {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let new = json!({ "name": "test", "scope": { "inference": true }, "limits": { "requests_per_minute": 4 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&new))).await.json();
    let key = made["key"].as_str().expect("a value");
    let left = |answer: &Answer| {
        ["limit", "remaining", "reset"].map(|word| answer.header(&format!("x-ratelimit-{word}-requests")).to_owned())
    };
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2, "n": 2 });
    let answer = app.send(request("POST", GENERATIONS, Some(key), Some(&body))).await;
    assert_eq!((answer.status, left(&answer)), (StatusCode::OK, ["4", "2", "30s"].map(str::to_owned)));
    for (remaining, reset) in [("1", "45s"), ("0", "60s")] {
        let mut stream =
            Stream::of(&app, request("POST", GENERATIONS, Some(key), Some(&streamed(2, &json!({}))))).await;
        assert_eq!(left(&stream.head), ["4", remaining, reset].map(str::to_owned));
        stream.rest().await;
    }
    let answer = app.send(request("POST", GENERATIONS, Some(key), Some(&body))).await;
    let expected = ["4".to_owned(), "0".to_owned(), format!("{}s", answer.header("retry-after"))];
    assert_eq!((answer.status, left(&answer)), (StatusCode::TOO_MANY_REQUESTS, expected));
    assert!(answer.header("ratelimit").starts_with("\"requests\""), "beside those of the IETF");
    // Other routes have those of the IETF alone, and a key without a limit has none.
    let answer = app.send(request("GET", "/v1/inference/jobs", Some(key), None)).await;
    assert_eq!((answer.code().as_str(), left(&answer)), ("rate_limited", [const { String::new() }; 3]));
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2 });
    let answer = app.send(request("POST", GENERATIONS, Some(&app.keys.inference), Some(&body))).await;
    assert_eq!((answer.status, left(&answer)), (StatusCode::OK, [const { String::new() }; 3]));
}
