//! Requests to the operator's service: one try each, no redirects, no proxy, a bounded answer.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};

use crate::domain::shared_secret::SharedSecret;
use crate::outgoing;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why there is no answer. Never says what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ModerationError {
    /// The service cannot be asked at all.
    #[error("the moderation service cannot be asked: {0}")]
    Client(String),
    /// The question could not be made.
    #[error("the question could not be made: {0}")]
    Question(String),
    /// It cannot be reached, or the connection broke.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("timed out")]
    Timeout,
    /// It was not asked: too many other reviews took all the time.
    #[error("not asked: too many reviews at the same time")]
    Crowded,
    /// It answered something else than success.
    #[error("answered with status {0}")]
    Status(u16),
    /// Its answer is too long.
    #[error("answered with more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// Its answer is not what was agreed.
    #[error("answered something else than JSON with a boolean `allow`")]
    Malformed,
}

pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    credential: Option<HeaderValue>,
}

impl Client {
    pub(super) fn new(url: &str, timeout: Duration, secret: Option<&SharedSecret>) -> Result<Self, ModerationError> {
        let unusable = |error: &dyn std::fmt::Display| ModerationError::Client(error.to_string());
        let url = Url::parse(url).map_err(|error| unusable(&error))?;
        let tls = outgoing::tls(url.scheme() == "https").map_err(|error| unusable(&error))?;
        let http = reqwest::Client::builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(timeout)
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .build()
            .map_err(|error| unusable(&error))?;
        let credential = secret.map(|secret| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.reveal()))?;
            value.set_sensitive(true);
            Ok::<_, reqwest::header::InvalidHeaderValue>(value)
        });
        Ok(Self { http, url, credential: credential.transpose().map_err(|error| unusable(&error))? })
    }

    /// Sends a question, JSON, and returns the body of a successful answer.
    pub(super) async fn ask(&self, question: Vec<u8>) -> Result<Vec<u8>, ModerationError> {
        let mut request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(question);
        if let Some(credential) = &self.credential {
            request = request.header(AUTHORIZATION, credential.clone());
        }
        let answer = request.send().await.map_err(|error| not_reached(&error))?;
        if !answer.status().is_success() {
            return Err(ModerationError::Status(answer.status().as_u16()));
        }
        read(answer).await
    }
}

async fn read(mut answer: Response) -> Result<Vec<u8>, ModerationError> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| not_reached(&error))? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(ModerationError::TooLong);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The innermost cause: the outer ones repeat the URL, which may contain a secret of the operator's.
fn not_reached(error: &reqwest::Error) -> ModerationError {
    if error.is_timeout() {
        return ModerationError::Timeout;
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let is_outer = cause.downcast_ref::<reqwest::Error>().is_some();
    ModerationError::Unreachable(if is_outer { "unknown cause".to_owned() } else { cause.to_string() })
}
