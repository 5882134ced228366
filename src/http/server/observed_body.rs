//! A body with an observer, which learns of its first read and of its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

/// Something that lives as long as a body.
pub(super) trait BodyObserver<B> {
    /// Called before the body is polled.
    fn before_read(&mut self) {}

    /// Called with what is left of the body when it is dropped.
    fn dropped(&mut self, _rest: B) {}
}

/// A body that behaves like `B` and tells its observer.
pub(super) struct ObservedBody<B, O: BodyObserver<B>> {
    /// `None` only while it is dropped.
    body: Option<B>,
    observer: O,
}

impl<B, O: BodyObserver<B>> ObservedBody<B, O> {
    pub(super) fn new(body: B, observer: O) -> Self {
        Self { body: Some(body), observer }
    }
}

impl<B: Body + Unpin, O: BodyObserver<B> + Unpin> Body for ObservedBody<B, O> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.observer.before_read();
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

impl<B, O: BodyObserver<B>> Drop for ObservedBody<B, O> {
    fn drop(&mut self) {
        if let Some(rest) = self.body.take() {
            self.observer.dropped(rest);
        }
    }
}
