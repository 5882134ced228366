//! What a connection is at: an exchange of a request for its answer, the head of the next one, or nothing at all. It goes
//! by this whom a newcomer may take the place of, and whether the other side may still be sending.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::response::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use tokio::sync::Notify;

/// How long a connection goes on being used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) requests_max: u64,
    pub(super) age_max: Duration,
}

/// What one connection is at. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    life: Life,
    began_at: Instant,
    state: Mutex<State>,
    /// Told when the connection has to make way.
    sent_away: Notify,
}

#[derive(Debug)]
struct State {
    /// Requests whose answer is not written yet, or whose body is not read yet.
    exchanges: u64,
    /// Requests so far.
    requests: u64,
    /// Since when there is no exchange.
    idle_since: Instant,
    /// Whether something has come since the last exchange: a head that is not whole yet, or what is none.
    has_heard: bool,
    /// Whether a body was left unread.
    has_abandoned: bool,
    is_sent_away: bool,
}

impl Activity {
    /// Of a connection that begins now.
    pub(super) fn new(life: Life) -> Self {
        let now = Instant::now();
        let state = State {
            exchanges: 0,
            requests: 0,
            idle_since: now,
            has_heard: false,
            has_abandoned: false,
            is_sent_away: false,
        };
        Self(Arc::new(Inner { life, began_at: now, state: Mutex::new(state), sent_away: Notify::new() }))
    }

    /// A request has come.
    pub(super) fn begin(&self) -> Exchange {
        let Life { requests_max, age_max } = self.0.life;
        let mut state = self.state();
        state.exchanges += 1;
        state.requests += 1;
        let is_last = state.requests >= requests_max || self.0.began_at.elapsed() >= age_max;
        Exchange { begun: Arc::new(Begun(self.clone())), is_last }
    }

    /// Something has come.
    pub(super) fn hear(&self) {
        self.state().has_heard = true;
    }

    /// What has come so far was for another purpose than requests.
    pub(super) fn forget(&self) {
        self.state().has_heard = false;
    }

    /// Whether nothing of the peer lies unread or is likely to be on its way.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.exchanges == 0 && !state.has_heard && !state.has_abandoned
    }

    /// Since when the connection has served nobody; `None` while it does, or when it has been sent away before.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.exchanges == 0 && !state.is_sent_away).then_some(state.idle_since)
    }

    /// Has the connection make way, unless a request comes before it has heard of that.
    pub(super) fn send_away(&self) {
        self.state().is_sent_away = true;
        self.0.sent_away.notify_one();
    }

    /// Returns when the connection has to make way.
    pub(super) async fn sent_away(&self) {
        loop {
            self.0.sent_away.notified().await;
            let mut state = self.state();
            if state.exchanges == 0 {
                return;
            }
            state.is_sent_away = false;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request on its way to its answer, until all clones are dropped: with the request's body and with the answer's.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    begun: Arc<Begun>,
    /// Whether the connection ends with it.
    is_last: bool,
}

#[derive(Debug)]
struct Begun(Activity);

impl Exchange {
    /// The request's body is not read to its end, so that nothing can follow it.
    pub(super) fn abandon_body(&self) {
        self.begun.0.state().has_abandoned = true;
    }

    /// The answer, which belongs to the exchange until it is written.
    pub(super) fn answered(self, mut response: Response) -> hyper::Response<Answer> {
        if self.is_last || self.begun.0.state().has_abandoned {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Answer { body, _exchange: self })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.exchanges -= 1;
        state.has_heard = false;
        state.idle_since = Instant::now();
    }
}

/// An answer's body, with the exchange that it ends.
pub(super) struct Answer {
    body: axum::body::Body,
    _exchange: Exchange,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
