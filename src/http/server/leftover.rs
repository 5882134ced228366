//! What is left of a request's body when its answer stands: read on and dropped, within bounds, beside the answer. A
//! refusal is often given before the body was read, and many clients look for an answer only when they have sent all.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::activity::Exchange;

/// Most bytes that are read for nothing: above the largest body that any route takes, with its images.
const LEFTOVER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Longest time to read for nothing.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(5);

/// A request's body that is read to its end also when nobody wants it any more.
pub(super) struct ReadToTheEnd {
    body: Option<Incoming>,
    exchange: Exchange,
    /// A client that waits to be asked for its body is not asked for one that nobody wants.
    waits_to_be_asked: bool,
}

impl ReadToTheEnd {
    pub(super) fn new(request: hyper::Request<Incoming>, exchange: Exchange) -> hyper::Request<Self> {
        let waits_to_be_asked = request.headers().contains_key(hyper::header::EXPECT);
        request.map(|body| Self { body: Some(body), exchange, waits_to_be_asked })
    }
}

impl Body for ReadToTheEnd {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Asked from here on.
        self.waits_to_be_asked = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for ReadToTheEnd {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        // A length beyond the bound is not worth beginning with: the connection closes lingering.
        if self.waits_to_be_asked || body.size_hint().lower() > LEFTOVER_BYTES_MAX {
            self.exchange.abandon_body();
            return;
        }
        let exchange = self.exchange.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if !matches!(tokio::time::timeout(LEFTOVER_DEADLINE, read_on(body)).await, Ok(true)) {
                    exchange.abandon_body();
                }
            });
        }
    }
}

/// Whether it was read to its end.
async fn read_on(mut body: Incoming) -> bool {
    let mut left = LEFTOVER_BYTES_MAX;
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
