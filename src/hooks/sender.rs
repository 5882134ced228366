//! One attempt of a delivery: a POST, within limits, to a permitted address, without following redirects.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};

use super::Lookup;
use super::resolver::{GuardedResolver, Refused};
use super::target::Rules;
use crate::outgoing;

/// Longest time to connect.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest time of a whole attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// What is read of an answer at most. Nothing of it is used: it shows that the receiver has finished.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A message, complete but for its address.
pub(super) struct Message {
    /// `webhook-id`.
    pub(super) id: String,
    /// `webhook-timestamp`, in seconds since 1970, UTC.
    pub(super) timestamp: i64,
    /// `webhook-signature`: one for each secret, separated by spaces.
    pub(super) signatures: String,
    /// JSON.
    pub(super) body: String,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Delivered { status: u16 },
    /// The receiver wants nothing any more.
    Gone,
    /// It may succeed later.
    Failed { status: Option<u16>, error: String },
}

/// Sends messages.
pub(super) struct Sender {
    http: reqwest::Client,
    rules: Arc<Rules>,
}

impl Sender {
    /// A sender that finds addresses with `lookup`. The error says why there can be none.
    pub(super) fn new(rules: Arc<Rules>, lookup: Arc<Lookup>) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // A proxy would resolve names itself, past the rules.
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .timeout(ATTEMPT_MAX)
            // Each connection is to an address that was checked for it.
            .pool_max_idle_per_host(0)
            .dns_resolver(GuardedResolver::new(lookup, Arc::clone(&rules)))
            .tls_backend_preconfigured(outgoing::tls(false).map_err(|error| error.to_string())?)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http, rules })
    }

    /// Sends a message once.
    pub(super) async fn send(&self, url: &str, message: Message) -> Outcome {
        // Again: the operator may allow less than when it was accepted. And an address in a URL is not resolved.
        let url = match self.rules.check(url) {
            Ok(url) => url,
            Err(bad) => return Outcome::Failed { status: None, error: format!("the URL {bad}") },
        };
        let Message { id, timestamp, signatures, body } = message;
        let request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signatures)
            .body(body);
        match request.send().await {
            Ok(answer) => judge(answer).await,
            Err(error) => Outcome::Failed { status: None, error: reason_of(&error).to_owned() },
        }
    }
}

async fn judge(mut answer: Response) -> Outcome {
    let status = answer.status();
    let failed = |error: String| Outcome::Failed { status: Some(status.as_u16()), error };
    if status == StatusCode::GONE {
        return Outcome::Gone;
    }
    if status.is_redirection() {
        return failed("redirects are not followed".to_owned());
    }
    if !status.is_success() {
        return failed(format!("the receiver answers {}", status.as_u16()));
    }
    let mut bytes = 0;
    while bytes <= ANSWER_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes += chunk.len(),
            Ok(None) => break,
            Err(error) if error.is_timeout() => return failed("the answer took too long".to_owned()),
            Err(_) => return failed("the answer broke off".to_owned()),
        }
    }
    Outcome::Delivered { status: status.as_u16() }
}

/// Words of ours: an error's own text repeats the URL, which may contain a secret.
fn reason_of(error: &reqwest::Error) -> &'static str {
    let mut cause = error.source();
    while let Some(inner) = cause.filter(|cause| !cause.is::<Refused>()) {
        cause = inner.source();
    }
    if cause.is_some() {
        "the host has no address that is allowed"
    } else if error.is_dns() {
        "the host's name cannot be resolved"
    } else if error.is_timeout() {
        if error.is_connect() { "connecting took too long" } else { "the answer took too long" }
    } else if error.is_connect() {
        "no connection, or no valid certificate"
    } else {
        "the connection broke off"
    }
}
