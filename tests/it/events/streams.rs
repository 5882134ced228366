//! The streams themselves: who may open them, their limits, reconnects, and their end.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use fluxserve::http::{ConnectionLimits, serve};
use fluxserve::jobs::WATCHES_PER_OWNER_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{EventStream, PATIENCE, ids, with_held_job};
use crate::app::{Options, TestApp, image, listen, managing, request};
use crate::fake_engine::Call;

#[tokio::test]
async fn a_client_that_reconnects_gets_only_what_is_new() {
    let (app, id) = with_held_job(3).await;
    app.control.let_pass(1);
    assert_eq!(EventStream::of_job(&app, &id, Some("step-0")).await.next_id().await, "step-1");
    // Already seen: waits for the next one.
    let mut seen = EventStream::of_job(&app, &id, Some("step-1")).await;
    // Other ids get the present state: those ahead of a restarted job, and unknown ones.
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
async fn jobs_of_other_keys_are_not_found() {
    let (app, id) = with_held_job(2).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let foreign = app.send(request("GET", &path, Some(&app.keys.other_inference), None)).await;
    assert_eq!(foreign.code(), "job_not_found");
    let unknown = app.get("/v1/inference/jobs/job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f/events").await;
    assert_eq!(unknown.code(), "job_not_found");
    app.control.release();
}

#[tokio::test]
async fn streams_per_key_are_limited_and_closed_ones_are_returned() {
    let (app, id) = with_held_job(2).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let mut streams = Vec::new();
    for _ in 0..WATCHES_PER_OWNER_MAX {
        streams.push(EventStream::open(&app, &path, &[]).await);
    }
    let refused = app.get(&path).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"));
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    // The administrator has a limit of its own.
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
async fn the_administrator_follows_the_jobs_of_all_keys() {
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
async fn a_stream_has_heartbeats_and_an_end_and_can_be_resumed() {
    let mut options = Options::default();
    (options.http.event_heartbeat, options.http.event_stream_max) =
        (Duration::from_millis(50), Duration::from_millis(500));
    // Shorter than a stream: the deadline only applies up to the first byte.
    options.http.request_deadline = Duration::from_millis(300);
    let app = TestApp::with(options).await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    let mut stream = EventStream::of_job(&app, &id, None).await;
    let opened = std::time::Instant::now();
    assert_eq!(ids(&stream.rest().await), ["step-0"], "no final event, since the job has not ended");
    assert!(opened.elapsed() >= Duration::from_millis(500));
    assert!(stream.other_lines.iter().filter(|line| line.starts_with(':')).count() >= 3, "{:?}", stream.other_lines);
    app.control.release();
    let rest = EventStream::of_job(&app, &id, Some("step-0")).await.rest().await;
    assert_eq!(rest.last().map(|event| event.name.as_str()), Some("succeeded"));
}

/// Requests a job's events on a new connection.
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
async fn a_client_that_stops_watching_cancels_nothing() {
    let (app, id) = with_held_job(2).await;
    let (address, server) = listen(&app, ConnectionLimits::default()).await;
    let mut connection = connect(&app, address, &id).await;
    read_until(&mut connection, "id: step-0").await;
    drop(connection);
    // The worker notices before the step is over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.control.release();
    app.until_status(&id, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Release(1)));
    server.abort();
}

#[tokio::test]
async fn streams_continue_while_draining_and_end_at_the_stop() {
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
    // The engine is in a step that takes longer than any wait.
    app.control.held().await;
    app.jobs.close();
    drop(close);
    assert_eq!(ids(&stream.rest().await), ["step-1"], "the next worker sends the rest");
    timeout(Duration::from_secs(5), server).await.expect("all connections are closed").expect("no panic");
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}/events")).await.code(), "draining");
    app.control.release();
}
