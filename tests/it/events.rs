//! A job's life as a stream of events: their order, coming back, the end, and what streams are held to.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use fluxserve::domain::engine::{EngineError, EngineLimits};
use fluxserve::http::{ConnectionLimits, serve};
use fluxserve::jobs::WATCHES_PER_OWNER_MAX;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::app::{Answer, Options, TestApp, decoded, image, listen, managing, request};
use crate::documented;
use crate::fake_engine::{Call, Fault, PREVIEW_RED_PER_STEP};

const PATIENCE: Duration = Duration::from_secs(20);

/// One event as its client gets it.
#[derive(Debug, Clone, PartialEq)]
struct SentEvent {
    id: String,
    name: String,
    data: Value,
}

/// A stream that is being read.
pub(crate) struct EventStream {
    answer: Answer,
    body: Body,
    unread: String,
    /// Lines that are no part of an event.
    non_step_work: Vec<String>,
}

impl EventStream {
    /// Opens a stream with the key of these tests.
    pub(crate) async fn open(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::of(app, request("GET", path, Some(&app.keys.inference), None), headers).await
    }

    async fn of(app: &TestApp, mut request: Request<Body>, headers: &[(&str, &str)]) -> Self {
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 40000))));
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request.headers_mut().insert(name, value.parse().expect("a header value"));
        }
        let path = request.uri().path().to_owned();
        let response = app.router.clone().oneshot(request).await.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let answer = Answer { status: parts.status, headers: parts.headers, bytes: Vec::new() };
        assert_eq!(answer.status, StatusCode::OK);
        documented::check(&Method::GET, &path, &answer);
        Self { answer, body, unread: String::new(), non_step_work: Vec::new() }
    }

    /// Opens the stream of a job.
    async fn of_job(app: &TestApp, id: &str, last_event_id: Option<&str>) -> Self {
        let headers: Vec<_> = last_event_id.into_iter().map(|id| ("last-event-id", id)).collect();
        Self::open(app, &format!("/v1/inference/jobs/{id}/events"), &headers).await
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<SentEvent> {
        // Around all of it: a heartbeat is no event.
        timeout(PATIENCE, self.read_next()).await.expect("an event in time")
    }

    async fn read_next(&mut self) -> Option<SentEvent> {
        loop {
            while let Some((block, rest)) = self.unread.split_once("\n\n") {
                let event = read_event(block);
                let non_step_work = block.lines().filter(|line| line.starts_with(':') || line.starts_with("retry:"));
                self.non_step_work.extend(non_step_work.map(str::to_owned));
                self.unread.drain(..self.unread.len() - rest.len());
                if let Some(event) = event {
                    return Some(event);
                }
            }
            let bytes = self.body.frame().await?.expect("a whole body").into_data().expect("no trailers");
            self.unread.push_str(std::str::from_utf8(&bytes).expect("text"));
        }
    }

    async fn next_id(&mut self) -> String {
        self.next().await.expect("an event").id
    }

    /// All events until the stream ends.
    async fn rest(&mut self) -> Vec<SentEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn read_event(block: &str) -> Option<SentEvent> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).expect("JSON");
    Some(SentEvent { id: field("id")?.to_owned(), name: field("event")?.to_owned(), data })
}

fn ids(events: &[SentEvent]) -> Vec<&str> {
    events.iter().map(|event| event.id.as_str()).collect()
}

/// An image of so many steps.
fn long_image(seed: u64, steps: u32) -> Value {
    let mut image = image(seed);
    image["steps"] = json!(steps);
    image
}

/// A worker that draws one image at a time, and its job, which stands before its first step.
async fn with_held_job(steps: u32) -> (TestApp, String) {
    let app = TestApp::start().await;
    app.control.set_limits(EngineLimits { images_max: 1, step_tokens_max: 100_000 });
    app.control.hold();
    let id = app.submit(&long_image(1, steps)).await;
    app.control.held().await;
    (app, id)
}

#[tokio::test]
async fn events_tell_a_jobs_life_in_its_order() {
    let (app, _first) = with_held_job(2).await;
    app.submit(&long_image(2, 1)).await;
    let third = app.submit(&long_image(3, 2)).await;
    let mut stream = EventStream::of_job(&app, &third, None).await;
    assert_eq!(stream.answer.header("content-type"), "text/event-stream");
    assert_eq!((stream.answer.header("cache-control"), stream.answer.header("x-accel-buffering")), ("no-store", "no"));
    let queued = stream.next().await.expect("an event");
    assert_eq!((queued.name.as_str(), &queued.data["position"]), ("queued", &json!(2)));
    assert!(queued.data["eta_seconds"].is_number(), "{queued:?}");
    assert_eq!(stream.non_step_work, ["retry: 2000"]);
    app.control.let_pass(2);
    let queued = stream.next().await.expect("an event");
    assert_eq!((queued.name.as_str(), &queued.data["position"]), ("queued", &json!(1)));
    app.control.let_pass(1);
    let begun = stream.next().await.expect("an event");
    assert_eq!((begun.name.as_str(), &begun.data["step"], &begun.data["steps"]), ("step", &json!(0), &json!(2)));
    app.control.let_pass(1);
    let step = stream.next().await.expect("an event");
    assert_eq!((step.name.as_str(), &step.data["step"]), ("step", &json!(1)));
    assert!(step.data.get("preview").is_none(), "{step:?}");
    app.control.release();
    let rest = stream.rest().await;
    // The last step may pass unread.
    let (end, steps) = rest.split_last().expect("an end");
    assert!(steps.is_empty() || ids(steps) == ["step-2"], "{rest:?}");
    assert_eq!(end.name, "succeeded");
    assert_eq!(end.data, app.get(&format!("/v1/inference/jobs/{third}")).await.json());
}

#[tokio::test]
async fn who_comes_back_is_told_what_is_new_and_nothing_else() {
    let (app, id) = with_held_job(3).await;
    app.control.let_pass(1);
    assert_eq!(EventStream::of_job(&app, &id, Some("step-0")).await.next_id().await, "step-1");
    // Seen: waits for the next one.
    let mut seen = EventStream::of_job(&app, &id, Some("step-1")).await;
    // Others are told where it stands: those who were ahead of a job that was begun anew, and those who were elsewhere.
    for other in [&b"queued-1"[..], b"step-2", b"succeeded", b"nonsense", b"step-", b"\xe9"] {
        let mut asked = request("GET", &format!("/v1/inference/jobs/{id}/events"), Some(&app.keys.inference), None);
        asked.headers_mut().insert("last-event-id", HeaderValue::from_bytes(other).expect("a value"));
        let next = EventStream::of(&app, asked, &[]).await.next_id().await;
        assert_eq!(next, "step-1", "{}", other.escape_ascii());
    }
    app.control.let_pass(1);
    assert_eq!(seen.next_id().await, "step-2");
    app.control.release();
    assert_eq!(seen.rest().await.last().map(|event| event.name.clone()).as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn the_end_is_told_to_whoever_has_not_seen_it() {
    let app = TestApp::start().await;
    let id = app.submit(&image(1)).await;
    let job = app.until_status(&id, "succeeded").await;
    for last in [None, Some("queued-1"), Some("step-2"), Some("failed"), Some("nonsense")] {
        let events = EventStream::of_job(&app, &id, last).await.rest().await;
        assert_eq!(ids(&events), ["succeeded"], "{last:?}");
        assert_eq!(events[0].data, job);
    }
    let mut asked = request("GET", &format!("/v1/inference/jobs/{id}/events"), Some(&app.keys.inference), None);
    asked.headers_mut().insert("last-event-id", "succeeded".parse().expect("a value"));
    let answer = app.send(asked).await;
    assert_eq!((answer.status, answer.header("cache-control")), (StatusCode::NO_CONTENT, "no-store"));
}

#[tokio::test]
async fn a_job_that_fails_ends_with_its_reason() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    let mut stream = EventStream::of_job(&app, &id, None).await;
    app.control.on_next_step(Fault::Error(EngineError::Request("the prompt is cursed".into())));
    app.control.release();
    let end = stream.rest().await.pop().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["error"]["code"]), ("failed", &json!("refused_by_engine")));
}

#[tokio::test]
async fn cancelled_jobs_end_so_wherever_they_stand() {
    let (app, running) = with_held_job(4).await;
    let waiting = app.submit(&image(2)).await;
    let mut of_running = EventStream::of_job(&app, &running, None).await;
    let mut of_waiting = EventStream::of_job(&app, &waiting, None).await;
    assert_eq!((of_running.next_id().await, of_waiting.next_id().await), ("step-0".into(), "queued-1".into()));
    app.delete(&format!("/v1/inference/jobs/{waiting}")).await;
    assert_eq!(ids(&of_waiting.rest().await), ["canceled"]);
    let path = format!("/v1/inference/jobs/{running}");
    tokio::join!(app.delete(&path), async {
        // The wish is there before the step is over.
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.control.release();
    });
    let end = of_running.rest().await.pop().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["status"]), ("canceled", &json!("canceled")));
}

#[tokio::test]
async fn jobs_of_others_are_not_there() {
    let (app, id) = with_held_job(2).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let foreign = app.send(request("GET", &path, Some(&app.keys.other_inference), None)).await;
    assert_eq!(foreign.code(), "job_not_found");
    let unknown = app.get("/v1/inference/jobs/job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f/events").await;
    assert_eq!(unknown.code(), "job_not_found");
    app.control.release();
}

#[tokio::test]
async fn previews_come_to_those_who_ask_for_them() {
    let (app, id) = with_held_job(4).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let mut without = EventStream::open(&app, &format!("{path}?preview=false"), &[]).await;
    let mut with = EventStream::open(&app, &format!("{path}?preview=true"), &[]).await;
    for stream in [&mut with, &mut without] {
        let begun = stream.next().await.expect("an event");
        assert_eq!((begun.id.as_str(), begun.data.get("preview")), ("step-0", None));
    }
    for step in 1..=2 {
        app.control.let_pass(1);
        let seen = with.next().await.expect("an event");
        assert_eq!(seen.data["step"], json!(step));
        let red = preview_red(&seen.data["preview"]);
        assert!(red.abs_diff(step * PREVIEW_RED_PER_STEP) <= 6, "step {step}: red {red}");
        let unseen = without.next().await.expect("an event");
        assert_eq!((&unseen.data["step"], unseen.data.get("preview")), (&json!(step), None));
    }
    assert_eq!(app.get(&format!("{path}?preview=maybe")).await.fields(), ["preview"]);
    assert_eq!(app.get(&format!("{path}?previews=true")).await.fields(), ["previews"]);
    app.control.release();
}

/// The red of the one pixel of a preview.
fn preview_red(url: &Value) -> u8 {
    let text = url.as_str().and_then(|url| url.strip_prefix("data:image/jpeg;base64,")).expect("a data URL");
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let place = |sign: &u8| digits.iter().position(|digit| digit == sign).expect("base64") as u32;
        let bits = group.iter().fold(0, |bits, sign| bits << 6 | place(sign)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    let (width, height, colour) = decoded(&bytes);
    assert_eq!((width, height), (1, 1));
    colour[0]
}

#[tokio::test]
async fn steps_that_pass_unread_are_skipped() {
    let (app, id) = with_held_job(6).await;
    let mut stream = EventStream::of_job(&app, &id, None).await;
    assert_eq!(stream.next_id().await, "step-0");
    app.control.let_pass(5);
    let path = format!("/v1/inference/jobs/{id}");
    while app.get(&path).await.json()["progress"]["step"] != 5 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(stream.next_id().await, "step-5");
    app.control.release();
}

#[tokio::test]
async fn a_job_that_is_begun_anew_goes_back() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    app.submit(&long_image(2, 6)).await;
    let mut stream = EventStream::of_job(&app, &first, None).await;
    assert_eq!(stream.next_id().await, "step-0");
    app.control.let_pass(1);
    assert_eq!(stream.next_id().await, "step-1");
    app.control.on_next_finish(Fault::Error(EngineError::OutOfMemory("told to".into())));
    app.control.let_pass(1);
    // It waits until the other one has left, and where it is then it was not before.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|id| id != "queued-1") {
        seen.push(stream.next_id().await);
    }
    app.control.let_pass(5);
    // What it had come to may be told once more, where the news travel more slowly than the engine works.
    while stream.next_id().await != "step-0" {}
    app.control.release();
    assert_eq!(stream.rest().await.last().map(|event| event.name.as_str()), Some("succeeded"));
    let calls = app.control.calls();
    assert_eq!(calls.iter().filter(|call| **call == Call::Admit(1)).count(), 2, "{calls:?}");
}

#[tokio::test]
async fn a_key_has_so_many_streams_and_gets_them_back() {
    let (app, id) = with_held_job(2).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let mut streams = Vec::new();
    for _ in 0..WATCHES_PER_OWNER_MAX {
        streams.push(EventStream::open(&app, &path, &[]).await);
    }
    let refused = app.get(&path).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"));
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    // Others have their own.
    let cookie = app.sign_in().await;
    let all = format!("/v1/jobs/{id}/events");
    let mut others = EventStream::of(&app, managing(&cookie, "GET", &all, None), &[]).await;
    assert_eq!(others.next_id().await, "step-0");
    streams.pop();
    let mut again = EventStream::open(&app, &path, &[]).await;
    assert_eq!(again.next_id().await, "step-0");
    app.control.release();
}

#[tokio::test]
async fn the_administrator_follows_the_jobs_of_everyone() {
    let (app, id) = with_held_job(2).await;
    let cookie = app.sign_in().await;
    let path = format!("/v1/jobs/{id}/events?preview=true");
    let mut stream = EventStream::of(&app, managing(&cookie, "GET", &path, None), &[]).await;
    assert_eq!(stream.next_id().await, "step-0");
    app.control.release();
    let end = stream.rest().await.pop().expect("an end");
    let job = app.send(managing(&cookie, "GET", &format!("/v1/jobs/{id}"), None)).await.json();
    assert!(job["key_id"].is_string());
    assert_eq!((end.name.as_str(), end.data), ("succeeded", job));
}

#[tokio::test]
async fn a_stream_has_a_pulse_and_an_end_and_can_be_taken_up_again() {
    let mut options = Options::default();
    (options.http.event_heartbeat, options.http.event_stream_max) =
        (Duration::from_millis(50), Duration::from_millis(500));
    // Less than a stream's life: the deadline is for the way to the first byte.
    options.http.request_deadline = Duration::from_millis(300);
    let app = TestApp::with(options).await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    let mut stream = EventStream::of_job(&app, &id, None).await;
    let opened = std::time::Instant::now();
    assert_eq!(ids(&stream.rest().await), ["step-0"], "and no end, for there was none");
    assert!(opened.elapsed() >= Duration::from_millis(500));
    assert!(
        stream.non_step_work.iter().filter(|line| line.starts_with(':')).count() >= 3,
        "{:?}",
        stream.non_step_work
    );
    app.control.release();
    let rest = EventStream::of_job(&app, &id, Some("step-0")).await.rest().await;
    assert_eq!(rest.last().map(|event| event.name.as_str()), Some("succeeded"));
}

/// Asks for a job's events by a connection of its own.
async fn connect(app: &TestApp, address: SocketAddr, id: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "GET /v1/inference/jobs/{id}/events HTTP/1.1\r\nhost: worker.test\r\nx-api-key: {}\r\n\r\n",
        app.keys.inference
    );
    connection.write_all(head.as_bytes()).await.expect("a written request");
    connection
}

async fn read_until(connection: &mut TcpStream, words: &str) {
    let mut text = String::new();
    while !text.contains(words) {
        let mut bytes = [0; 4096];
        let count = timeout(PATIENCE, connection.read(&mut bytes)).await.expect("in time").expect("readable");
        assert_ne!(count, 0, "closed after {text}");
        text.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
    }
}

#[tokio::test]
async fn who_stops_watching_cancels_nothing() {
    let (app, id) = with_held_job(2).await;
    let (address, server) = listen(&app, ConnectionLimits::default()).await;
    let mut connection = connect(&app, address, &id).await;
    read_until(&mut connection, "id: step-0").await;
    drop(connection);
    // The worker has noticed before the step is over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.control.release();
    app.until_status(&id, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Release(1)));
    server.abort();
}

#[tokio::test]
async fn draining_streams_go_on_and_stopping_ends_them() {
    let (app, id) = with_held_job(3).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    let limits = ConnectionLimits::default();
    let server = tokio::spawn(serve(listener, app.router.clone(), async { drop(closing.await) }, limits, None));
    let mut connection = connect(&app, address, &id).await;
    let mut stream = EventStream::of_job(&app, &id, None).await;
    read_until(&mut connection, "id: step-0").await;
    app.jobs.drain();
    app.control.let_pass(1);
    read_until(&mut connection, "id: step-1").await;
    // The engine is in the middle of a step, and will be for longer than anybody waits.
    app.control.held().await;
    app.jobs.close();
    drop(close);
    assert_eq!(ids(&stream.rest().await), ["step-1"], "what is not told now is told by the next worker");
    timeout(Duration::from_secs(5), server).await.expect("all connections are gone").expect("no panic");
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}/events")).await.code(), "draining");
    app.control.release();
}
