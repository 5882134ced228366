//! The activity of a connection: an exchange of request and answer, a partial head, or none. Decides which connection
//! may be evicted, and whether the peer may still be sending.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::response::Response;
use hyper::header::{CONNECTION, HeaderValue};
use tokio::sync::Notify;

use super::observed_body::{BodyObserver, ObservedBody};

/// Limits on the reuse of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepAliveLimits {
    pub(super) requests_max: u64,
    pub(super) age_max: Duration,
}

/// The activity of one connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: KeepAliveLimits,
    began_at: Instant,
    state: Mutex<State>,
    /// Notified when the connection is evicted.
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    /// Requests whose answer is not written yet, or whose body is not read yet.
    exchanges: u64,
    /// Requests so far.
    requests: u64,
    /// When the last exchange ended.
    idle_since: Instant,
    /// Whether bytes have arrived since the last exchange: an incomplete head, or something else.
    has_received: bool,
    /// Whether a body was left unread.
    has_unread_body: bool,
    is_evicted: bool,
}

impl Activity {
    /// For a new connection.
    pub(super) fn new(limits: KeepAliveLimits) -> Self {
        let now = Instant::now();
        let state = State {
            exchanges: 0,
            requests: 0,
            idle_since: now,
            has_received: false,
            has_unread_body: false,
            is_evicted: false,
        };
        Self(Arc::new(Inner { limits, began_at: now, state: Mutex::new(state), evicted: Notify::new() }))
    }

    /// Notes a request.
    pub(super) fn begin(&self) -> Exchange {
        let KeepAliveLimits { requests_max, age_max } = self.0.limits;
        let mut state = self.state();
        state.exchanges += 1;
        state.requests += 1;
        let is_last = state.requests >= requests_max || self.0.began_at.elapsed() >= age_max;
        Exchange { guard: Arc::new(ExchangeGuard(self.clone())), is_last }
    }

    /// Notes received bytes.
    pub(super) fn note_received(&self) {
        self.state().has_received = true;
    }

    /// Forgets received bytes that were not part of requests.
    pub(super) fn forget_received(&self) {
        self.state().has_received = false;
    }

    /// Whether the peer has sent nothing that is unread and is unlikely to be sending.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.exchanges == 0 && !state.has_received && !state.has_unread_body
    }

    /// Since when the connection has been idle; `None` if it is not, or if it is already evicted.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.exchanges == 0 && !state.is_evicted).then_some(state.idle_since)
    }

    /// Evicts the connection, unless a request arrives before that takes effect.
    pub(super) fn evict(&self) {
        self.state().is_evicted = true;
        self.0.evicted.notify_one();
    }

    /// Returns when the connection is evicted.
    pub(super) async fn evicted(&self) {
        loop {
            self.0.evicted.notified().await;
            let mut state = self.state();
            if state.exchanges == 0 {
                return;
            }
            state.is_evicted = false;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request and its answer, until all clones are dropped: those of the request's body and of the answer's.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    guard: Arc<ExchangeGuard>,
    /// Whether it is the connection's last.
    is_last: bool,
}

#[derive(Debug)]
struct ExchangeGuard(Activity);

impl Exchange {
    /// Notes that the request's body is not read to its end, so no request can follow.
    pub(super) fn abandon_body(&self) {
        self.guard.0.state().has_unread_body = true;
    }

    /// Makes the answer part of the exchange until it is written.
    pub(super) fn answered(self, mut response: Response) -> hyper::Response<Answer> {
        if self.is_last || self.guard.0.state().has_unread_body {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| ObservedBody::new(body, self))
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.exchanges -= 1;
        state.has_received = false;
        state.idle_since = Instant::now();
    }
}

/// An answer's body, which keeps its exchange until it is written.
pub(super) type Answer = ObservedBody<axum::body::Body, Exchange>;

impl BodyObserver<axum::body::Body> for Exchange {}
