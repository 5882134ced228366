//! The ways to wait for an image, and what happens to a job whose client has hung up.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineError;
use fluxserve::http::ConnectionLimits;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::app::{TestApp, decoded, image, listen};
use crate::fake_engine::{Call, Fault, colour};

#[tokio::test]
async fn prefer_wait_returns_the_finished_job() {
    let app = TestApp::start().await;
    let answer = app.post_with(&image(3), &[("prefer", "respond-async, wait=15")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("preference-applied"), "wait=15");
    let job = answer.json();
    assert_eq!((&job["status"], &job["progress"]), (&json!("succeeded"), &json!({ "step": 2, "steps": 2 })));
    assert!(job["finished_at"].is_string() && job["started_at"].is_string(), "{job}");
    assert_eq!((&job["error"], &job["queue_position"]), (&json!(null), &json!(null)));
}

#[tokio::test]
async fn when_the_wait_ends_the_job_continues() {
    let app = TestApp::start().await;
    app.control.hold();
    let answer = app.post_with(&image(3), &[("prefer", "wait=0")]).await;
    assert_eq!((answer.status, answer.header("preference-applied")), (StatusCode::ACCEPTED, "wait=0"));
    let id = answer.json()["job_id"].as_str().expect("an id").to_owned();
    app.control.release();
    app.until_status(&id, "succeeded").await;
}

#[tokio::test]
async fn waits_are_limited_to_the_maximum() {
    let app = TestApp::start().await;
    let answer = app.post_with(&image(3), &[("prefer", "wait=86400")]).await;
    assert_eq!(answer.header("preference-applied"), "wait=20");
}

#[tokio::test]
async fn accept_returns_the_image_itself() {
    let app = TestApp::start().await;
    for accept in ["image/png", "image/webp", "image/jpeg"] {
        let answer = app.post_with(&image(9), &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, accept));
        let (width, height, first) = decoded(&answer.bytes);
        assert_eq!((width, height), (64, 64));
        let close = first.iter().zip(colour(9)).all(|(found, meant)| found.abs_diff(meant) <= 4);
        assert!(close, "{accept}: {first:?}");
        assert_eq!(answer.header("x-seed"), "9");
        assert!(answer.header("x-job-id").starts_with("job_"));
    }
}

#[tokio::test]
async fn accept_and_output_format_must_agree() {
    let app = TestApp::start().await;
    let mut body = image(1);
    body["output_format"] = json!("webp");
    assert_eq!(app.post_with(&body, &[("accept", "image/png")]).await.fields(), ["output_format"]);
    for either in ["image/*", "image/png, image/webp", "image/png,image/jpeg;q=0.9,image/webp;q=0.1"] {
        let answer = app.post_with(&body, &[("accept", either)]).await;
        assert_eq!(answer.header("content-type"), "image/webp", "{either}: {}", answer.text());
    }
    let json = app.post_with(&body, &[("accept", "application/json"), ("prefer", "wait=20")]).await.json();
    assert_eq!(json["parameters"]["output_format"], "webp");
    assert_eq!(app.post_with(&body, &[("accept", "text/html")]).await.code(), "not_acceptable");
}

#[tokio::test]
async fn an_image_that_failed_is_an_error_and_a_job_that_failed_is_a_job() {
    let app = TestApp::start().await;
    app.control.on_next_admit(Fault::Error(EngineError::Request("the prompt is cursed".into())));
    let answer = app.post_with(&image(1), &[("accept", "image/png")]).await;
    assert_eq!(answer.code(), "job_failed");
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("the prompt is cursed")));
    app.control.on_next_admit(Fault::Error(EngineError::Request("the prompt is cursed".into())));
    let answer = app.post_with(&image(1), &[("prefer", "wait=20")]).await;
    assert_eq!((answer.status, &answer.json()["status"]), (StatusCode::OK, &json!("failed")));
    assert_eq!(answer.json()["error"], json!({ "code": "refused_by_engine", "reason": "the prompt is cursed" }));
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_running_job() {
    let app = TestApp::start().await;
    app.control.hold();
    let request = app.post_request(&image(4), &[("prefer", "wait=20")]);
    let waiting = tokio::spawn(app.router.clone().oneshot(request));
    app.control.held().await;
    waiting.abort();
    drop(waiting.await);
    app.control.release();
    app.control.until_called(Call::Release(4)).await;
    assert_eq!(app.control.calls(), [Call::Admit(4), Call::Step(vec![4]), Call::Release(4)]);
    let list = app.get("/v1/inference/jobs").await.json();
    let id = list["data"][0]["job_id"].as_str().expect("an id").to_owned();
    app.until_status(&id, "canceled").await;
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_queued_job() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.until_status(&first, "running").await;
    let request = app.post_request(&image(2), &[("accept", "image/png")]);
    let waiting = tokio::spawn(app.router.clone().oneshot(request));
    let second = loop {
        let list = app.get("/v1/inference/jobs?status=queued").await.json();
        if let Some(id) = list["data"][0]["job_id"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    waiting.abort();
    drop(waiting.await);
    app.until_status(&second, "canceled").await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Admit(2)));
}

#[tokio::test]
async fn a_broken_connection_cancels_the_job_of_its_request() {
    let app = TestApp::start().await;
    let (address, server) = listen(&app, ConnectionLimits::default()).await;
    // Also if unread bytes follow the request, as with pipelining.
    for (seed, behind) in [(8, ""), (9, "GET /healthz HTTP/1.1\r\nhost: worker.test\r\n\r\n")] {
        hang_up_after(&app, address, seed, behind).await;
        app.control.forget_calls();
    }
    server.abort();
}

async fn hang_up_after(app: &TestApp, address: SocketAddr, seed: u64, behind: &str) {
    app.control.hold();
    let body = image(seed).to_string();
    let head = format!(
        "POST /v1/inference/image HTTP/1.1\r\nhost: worker.test\r\nx-api-key: {}\r\nprefer: wait=20\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        app.keys.inference,
        body.len()
    );
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    connection.write_all(format!("{head}{body}{behind}").as_bytes()).await.expect("a written request");
    app.control.held().await;
    drop(connection);
    // The server notices the end of the connection before the step is over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.control.release();
    app.control.until_called(Call::Release(seed)).await;
    assert_eq!(app.control.calls(), [Call::Admit(seed), Call::Step(vec![seed]), Call::Release(seed)]);
}
