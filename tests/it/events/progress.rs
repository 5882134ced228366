//! The events of a job: their order and content, from the queue to the end.

use std::time::Duration;

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineError;
use serde_json::{Value, json};

use super::{EventStream, ids, long_image, with_held_job};
use crate::app::{TestApp, decoded, image, request};
use crate::fake_engine::{Call, Fault, PREVIEW_RED_PER_STEP};

#[tokio::test]
async fn events_report_a_jobs_progress_in_order() {
    let (app, _first) = with_held_job(2).await;
    app.submit(&long_image(2, 1)).await;
    let third = app.submit(&long_image(3, 2)).await;
    let mut stream = EventStream::of_job(&app, &third, None).await;
    assert_eq!(stream.answer.header("content-type"), "text/event-stream");
    assert_eq!((stream.answer.header("cache-control"), stream.answer.header("x-accel-buffering")), ("no-store", "no"));
    let queued = stream.next().await.expect("an event");
    assert_eq!((queued.name.as_str(), &queued.data["position"]), ("queued", &json!(2)));
    assert!(queued.data["eta_seconds"].is_number(), "{queued:?}");
    assert_eq!(stream.other_lines, ["retry: 2000"]);
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
async fn the_end_is_sent_to_clients_that_have_not_seen_it() {
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
    app.control.on_next_step(Fault::Error(EngineError::Request("the prompt is refused".into())));
    app.control.release();
    let end = stream.rest().await.pop().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["error"]["code"]), ("failed", &json!("refused_by_engine")));
}

#[tokio::test]
async fn canceled_jobs_end_the_stream_in_any_state() {
    let (app, running) = with_held_job(4).await;
    let waiting = app.submit(&image(2)).await;
    let mut of_running = EventStream::of_job(&app, &running, None).await;
    let mut of_waiting = EventStream::of_job(&app, &waiting, None).await;
    assert_eq!((of_running.next_id().await, of_waiting.next_id().await), ("step-0".into(), "queued-1".into()));
    app.delete(&format!("/v1/inference/jobs/{waiting}")).await;
    assert_eq!(ids(&of_waiting.rest().await), ["canceled"]);
    let path = format!("/v1/inference/jobs/{running}");
    tokio::join!(app.delete(&path), async {
        // The request arrives before the step is over.
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.control.release();
    });
    let end = of_running.rest().await.pop().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["status"]), ("canceled", &json!("canceled")));
}

#[tokio::test]
async fn previews_are_sent_on_request() {
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

/// The red value of a preview's single pixel.
fn preview_red(url: &Value) -> u8 {
    let text = url.as_str().and_then(|url| url.strip_prefix("data:image/jpeg;base64,")).expect("a data URL");
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let index = |sign: &u8| digits.iter().position(|digit| digit == sign).expect("base64") as u32;
        let bits = group.iter().fold(0, |bits, sign| bits << 6 | index(sign)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    let (width, height, color) = decoded(&bytes);
    assert_eq!((width, height), (1, 1));
    color[0]
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
async fn a_restarted_job_goes_back() {
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
    // It waits until the other job has left, and is then queued for the first time.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|id| id != "queued-1") {
        seen.push(stream.next_id().await);
    }
    app.control.let_pass(5);
    // Its earlier state may be sent again if updates are slower than the engine.
    while stream.next_id().await != "step-0" {}
    app.control.release();
    assert_eq!(stream.rest().await.last().map(|event| event.name.as_str()), Some("succeeded"));
    let calls = app.control.calls();
    assert_eq!(calls.iter().filter(|call| **call == Call::Admit(1)).count(), 2, "{calls:?}");
}
