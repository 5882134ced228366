//! A revoked key under load: no request that starts after the revocation's answer is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fluxserve::http::ConnectionLimits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{TestApp, image, listen, request};
use crate::fake_engine::Call;
use crate::management::Administrator;

const CONNECTIONS: usize = 64;

/// The start of a request, and its outcome.
type Asked = (Instant, u16);

/// Sends requests on one connection until told to stop.
async fn ask(address: std::net::SocketAddr, key: String, stop: Arc<AtomicBool>) -> Vec<Asked> {
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET /v1/inference/jobs?limit=1 HTTP/1.1\r\nhost: worker.test\r\nx-api-key: {key}\r\n\r\n");
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        connection.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        // Short answers with their length in the head.
        while !is_complete(&answer) {
            let count = connection.read(&mut buffer).await.expect("read");
            assert!(count > 0, "the worker has closed the connection");
            answer.extend_from_slice(&buffer[..count]);
        }
        let status = std::str::from_utf8(&answer[9..12]).expect("digits").parse().expect("a status");
        asked.push((begun, status));
    }
    asked
}

fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    body.len() >= length.expect("a length")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_starts_after_the_revocation_is_accepted() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let body = json!({ "name": "to be revoked", "scope": { "inference": true } });
    let created = administrator.ask("POST", "/v1/api-keys", Some(body)).await.json();
    let (id, key) = (created["id"].as_str().expect("an id"), created["key"].as_str().expect("a value"));
    let (address, server) = listen(&app, ConnectionLimits::default()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CONNECTIONS).map(|_| tokio::spawn(ask(address, key.to_owned(), Arc::clone(&stop)))).collect();
    // By then every client has been accepted once.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let revoked = administrator.ask("DELETE", &format!("/v1/api-keys/{id}"), None).await;
    let answered = Instant::now();
    assert_eq!(revoked.status.as_u16(), 200, "{}", revoked.text());
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut before = 0;
    let mut after = 0;
    for client in clients {
        for (begun, status) in client.await.expect("no panic") {
            if begun > answered {
                assert!([401, 429].contains(&status), "{status} for a request after the revocation");
                after += 1;
            } else {
                before += u32::from(status == 200);
            }
        }
    }
    assert!(before as usize >= CONNECTIONS && after >= CONNECTIONS, "{before} let in before, {after} asked after");
    server.abort();
}

#[tokio::test]
async fn only_the_jobs_of_a_revoked_key_are_canceled_by_the_next_step() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let body = json!({ "name": "to be revoked", "scope": { "inference": true } });
    let created = administrator.ask("POST", "/v1/api-keys", Some(body)).await.json();
    let (id, key) = (created["id"].as_str().expect("an id"), created["key"].as_str().expect("a value"));
    app.control.hold();
    let others = app.submit(&image(1)).await;
    app.control.held().await;
    let submit = async |seed| {
        let job = app.send(request("POST", "/v1/inference/image", Some(key), Some(&image(seed)))).await.json();
        job["job_id"].as_str().expect("an id").to_owned()
    };
    let finished = submit(2).await;
    app.control.let_pass(1);
    app.control.until_called(Call::Step(vec![1, 2])).await;
    let jobs = [finished, submit(3).await];
    assert_eq!(administrator.ask("DELETE", &format!("/v1/api-keys/{id}"), None).await.status.as_u16(), 200);
    app.control.release();
    app.until_status(&others, "succeeded").await;
    for job in jobs {
        let started = Instant::now();
        // It has left the engine; this is stored a moment later.
        while administrator.ask("GET", &format!("/v1/jobs/{job}"), None).await.json()["status"] != "canceled" {
            assert!(started.elapsed() < Duration::from_secs(20), "{job} is not canceled");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let expected = [
        Call::Admit(1),
        Call::Step(vec![1]),
        Call::Admit(2),
        Call::Step(vec![1, 2]),
        Call::Release(2),
        Call::Finish(1),
    ];
    assert_eq!(app.control.calls(), expected, "within a step");
}

#[tokio::test]
async fn a_link_ends_with_its_key() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let make = async |expires_at: Option<&str>| {
        let body = json!({ "name": "gives links", "scope": { "inference": true }, "expires_at": expires_at });
        let created = administrator.ask("POST", "/v1/api-keys", Some(body)).await.json();
        let key = created["key"].as_str().expect("a value");
        let mut waiting = request("POST", "/v1/inference/image", Some(key), Some(&image(1)));
        waiting.headers_mut().insert("prefer", "wait=20".parse().expect("a value"));
        let url = app.send(waiting).await.json()["result_url"].as_str().expect("a URL").to_owned();
        let link = url.trim_start_matches("http://worker.test").to_owned();
        (created["id"].as_str().expect("an id").to_owned(), link)
    };
    let open = async |link: &str| app.send(request("GET", link, None, None)).await;
    let (id, link) = make(None).await;
    let soon = app.clock_now() + time::Duration::minutes(10);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).expect("a moment");
    let (_, short_lived) = make(Some(&soon)).await;
    for link in [&link, &short_lived] {
        assert_eq!(open(link).await.status.as_u16(), 200);
    }
    assert_eq!(administrator.ask("DELETE", &format!("/v1/api-keys/{id}"), None).await.status.as_u16(), 200);
    assert_eq!(open(&link).await.code(), "link_refused");
    app.clock.advance(time::Duration::minutes(11));
    assert_eq!(open(&short_lived).await.code(), "link_refused");
}
