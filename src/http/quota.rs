//! An exhausted quota in the `RateLimit-Policy` and `RateLimit` headers of the IETF's draft on rate limits
//! (draft-ietf-httpapi-ratelimit-headers-11).

use axum::http::{HeaderMap, HeaderName, HeaderValue};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Those of OpenAI, which its clients and gateways read.
const REQUESTS_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REQUESTS_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const REQUESTS_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// The name of the quota of requests per minute.
const REQUESTS: &str = "requests";

pub(super) const DAY_SECONDS: u32 = 24 * 60 * 60;

/// A quota.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    /// What it limits.
    pub(super) name: &'static str,
    /// The total.
    pub(super) limit: u32,
    /// The time window.
    pub(super) window_seconds: Option<u32>,
    /// What is left.
    pub(super) left: u64,
}

impl Quota {
    /// That of requests per minute.
    pub(super) fn of_requests(per_minute: u32, left: u32) -> Self {
        Self { name: REQUESTS, limit: per_minute, window_seconds: Some(60), left: left.into() }
    }

    /// Writes that of requests into the headers that OpenAI has for it, and no other; it is renewed after `reset_seconds`.
    pub(super) fn write_for_openai(&self, headers: &mut HeaderMap, reset_seconds: u64) {
        if self.name != REQUESTS {
            return;
        }
        headers.insert(REQUESTS_LIMIT, self.limit.into());
        headers.insert(REQUESTS_REMAINING, self.left.into());
        let reset = HeaderValue::try_from(format!("{reset_seconds}s")).expect("digits are visible ASCII");
        headers.insert(REQUESTS_RESET, reset);
    }

    /// Writes it into the headers of an answer; it is renewed after `reset_seconds`.
    pub(super) fn write(&self, headers: &mut HeaderMap, reset_seconds: u64) {
        let Self { name, limit, window_seconds, left } = self;
        let window = window_seconds.map(|seconds| format!(";w={seconds}")).unwrap_or_default();
        let policy = format!("\"{name}\";q={limit}{window}");
        let state = format!("\"{name}\";r={left};t={reset_seconds}");
        for (field, text) in [(POLICY, policy), (LIMIT, state)] {
            headers.insert(field, HeaderValue::try_from(text).expect("words and digits are visible ASCII"));
        }
    }
}
