//! A job's progress as a stream of events.

mod progress;
mod streams;

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, Method, Request, StatusCode};
use fluxserve::domain::engine::EngineLimits;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;

use crate::app::{Answer, TestApp, image, request};
use crate::documented;

const PATIENCE: Duration = Duration::from_secs(20);

/// One event as received by its client.
#[derive(Debug, Clone, PartialEq)]
struct SentEvent {
    id: String,
    name: String,
    data: Value,
}

/// A stream that the test reads.
pub(crate) struct EventStream {
    answer: Answer,
    body: Body,
    unread: String,
    /// Lines that are not part of an event.
    other_lines: Vec<String>,
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
        Self { answer, body, unread: String::new(), other_lines: Vec::new() }
    }

    /// Opens the stream of a job.
    async fn of_job(app: &TestApp, id: &str, last_event_id: Option<&str>) -> Self {
        let headers: Vec<_> = last_event_id.into_iter().map(|id| ("last-event-id", id)).collect();
        Self::open(app, &format!("/v1/inference/jobs/{id}/events"), &headers).await
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<SentEvent> {
        // Around the loop: a heartbeat is not an event.
        timeout(PATIENCE, self.read_next()).await.expect("an event in time")
    }

    async fn read_next(&mut self) -> Option<SentEvent> {
        loop {
            while let Some((block, rest)) = self.unread.split_once("\n\n") {
                let event = read_event(block);
                let other_lines = block.lines().filter(|line| line.starts_with(':') || line.starts_with("retry:"));
                self.other_lines.extend(other_lines.map(str::to_owned));
                self.unread.drain(..self.unread.len() - rest.len());
                if let Some(event) = event {
                    return Some(event);
                }
            }
            let bytes = self.body.frame().await?.expect("a complete body").into_data().expect("no trailers");
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

/// An image with so many steps.
fn long_image(seed: u64, steps: u32) -> Value {
    let mut image = image(seed);
    image["steps"] = json!(steps);
    image
}

/// A worker that runs one image at a time, with a job held before its first step.
async fn with_held_job(steps: u32) -> (TestApp, String) {
    let app = TestApp::start().await;
    app.control.set_limits(EngineLimits { images_max: 1, step_tokens_max: 100_000 });
    app.control.hold();
    let id = app.submit(&long_image(1, steps)).await;
    app.control.held().await;
    (app, id)
}
