//! Drains the rest of a request's body, within bounds and concurrently with the answer. A refusal is often sent before the
//! body is read, and many clients read the answer only after they have sent everything.

use std::pin::Pin;
use std::time::Duration;

use hyper::body::{Body, Incoming};

use super::activity::Exchange;
use super::observed_body::{BodyObserver, ObservedBody};

/// Maximum bytes that are drained: above a body with two of the largest images.
const DRAIN_BYTES_MAX: u64 = 48 * 1024 * 1024;
/// Longest time to drain a body.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// A request's body whose rest is drained when it is dropped.
pub(super) type DrainedBody = ObservedBody<Incoming, Drain>;

/// Drains the rest of a body.
pub(super) struct Drain {
    exchange: Exchange,
    /// Whether the client still waits for `100 Continue`. It is not asked for a body that would only be drained.
    awaits_continue: bool,
}

impl Drain {
    /// The request with its body, which belongs to `exchange`.
    pub(super) fn wrap(request: hyper::Request<Incoming>, exchange: Exchange) -> hyper::Request<DrainedBody> {
        let awaits_continue = request.headers().contains_key(hyper::header::EXPECT);
        request.map(|body| ObservedBody::new(body, Self { exchange, awaits_continue }))
    }
}

impl BodyObserver<Incoming> for Drain {
    fn before_read(&mut self) {
        // Reading sends `100 Continue`.
        self.awaits_continue = false;
    }

    fn dropped(&mut self, rest: Incoming) {
        if rest.is_end_stream() {
            return;
        }
        // A body longer than the bound is not worth starting with: the connection lingers when it closes.
        if self.awaits_continue || rest.size_hint().lower() > DRAIN_BYTES_MAX {
            self.exchange.abandon_body();
            return;
        }
        let exchange = self.exchange.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if !matches!(tokio::time::timeout(DRAIN_DEADLINE, drain(rest)).await, Ok(true)) {
                    exchange.abandon_body();
                }
            });
        }
    }
}

/// Whether the body was read to its end.
async fn drain(mut body: Incoming) -> bool {
    let mut left = DRAIN_BYTES_MAX;
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(frame) = frame else { return false };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}
