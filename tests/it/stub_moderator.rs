//! A moderation service of the tests: answers what it is told to, and remembers what it was asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use fluxserve::domain::review::OnFailure;
use fluxserve::moderation::ModerationSettings;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) const SECRET: &str = "hush";

/// What it does with a question.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Allow,
    Refuse(&'static str),
    /// Nothing until it is released.
    Wait,
    /// This status and body.
    Say(u16, String),
}

struct Inner {
    before: Reply,
    after: Reply,
    asked: Vec<Value>,
}

#[derive(Clone)]
pub(crate) struct StubModerator {
    url: String,
    inner: Arc<Mutex<Inner>>,
    released: Arc<watch::Sender<bool>>,
}

impl StubModerator {
    /// One that allows everything.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/review", listener.local_addr().expect("an address"));
        let inner = Inner { before: Reply::Allow, after: Reply::Allow, asked: Vec::new() };
        let stub = Self { url, inner: Arc::new(Mutex::new(inner)), released: Arc::new(watch::channel(false).0) };
        let router = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        stub
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settings of a worker that asks it about everything.
    pub(crate) fn settings(&self) -> ModerationSettings {
        ModerationSettings {
            url: self.url.clone(),
            before: true,
            after: true,
            on_failure: OnFailure::Refuse,
            timeout: Duration::from_secs(20),
            secret: Some(SECRET.parse().expect("a secret")),
        }
    }

    pub(crate) fn on_prompts(&self, reply: Reply) {
        self.inner().before = reply;
    }

    pub(crate) fn on_images(&self, reply: Reply) {
        self.inner().after = reply;
    }

    /// The questions so far.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.inner().asked.clone()
    }

    /// Lets waiting questions be allowed.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }
}

async fn answer(State(stub): State<StubModerator>, headers: HeaderMap, body: Bytes) -> Response {
    if headers.get("authorization").is_none_or(|value| value != &format!("Bearer {SECRET}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    assert_eq!(headers["content-type"], "application/json");
    let question: Value = serde_json::from_slice(&body).expect("JSON");
    let reply = {
        let mut inner = stub.inner();
        let reply = if question["stage"] == "before" { inner.before.clone() } else { inner.after.clone() };
        inner.asked.push(question);
        reply
    };
    match reply {
        Reply::Allow => r#"{"allow": true}"#.into_response(),
        Reply::Refuse(reason) => serde_json::json!({ "allow": false, "reason": reason }).to_string().into_response(),
        Reply::Wait => {
            let mut released = stub.released.subscribe();
            released.wait_for(|is_released| *is_released).await.expect("the stub lives");
            r#"{"allow": true}"#.into_response()
        }
        Reply::Say(status, body) => (StatusCode::from_u16(status).expect("a status"), body).into_response(),
    }
}
