//! A TCP stream that ends when its peer no longer takes what is written, and that tells when its peer has hung up even
//! while bytes of the peer lie unread.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How often a stream with unread bytes is asked whether its peer is still there.
const HANG_UP_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// What is left to a connection after its peer has hung up, to read what was sent before and to answer it.
const HANG_UP_GRACE: Duration = Duration::from_millis(250);

/// The stream as the HTTP implementation gets it.
pub(super) struct WatchedStream {
    stream: Arc<TcpStream>,
    write_stall_max: Duration,
    /// Runs while the peer takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

impl WatchedStream {
    pub(super) fn new(stream: Arc<TcpStream>, write_stall_max: Duration) -> Self {
        Self { stream, write_stall_max, stall: None }
    }

    fn poll_written(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(writable) = self.stream.poll_write_ready(context) {
            writable?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    self.stall = None;
                    return Poll::Ready(outcome);
                }
            }
        }
        let write_stall_max = self.write_stall_max;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_stall_max)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not take its answer")))
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(into.initialize_unfilled()) {
                Ok(count) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: the stream is dropped right after, and that closes it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns a moment after the peer has closed its side. The HTTP implementation notices that only by reading, and does
/// not read on while it has unread bytes: a client that sends something behind its request and leaves would be worked
/// for in vain. A client that closes its side early and still wants its answer counts as one that has left, as it does
/// for the HTTP implementation.
pub(super) async fn hung_up(stream: &TcpStream) {
    // A broken stream is for the HTTP implementation to meet, which says what is wrong.
    while stream.ready(Interest::READABLE).await.is_ok_and(|readiness| !readiness.is_read_closed()) {
        tokio::time::sleep(HANG_UP_CHECK_INTERVAL).await;
    }
    tokio::time::sleep(HANG_UP_GRACE).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.expect("a connection");
        let mut watched = WatchedStream::new(Arc::new(stream), Duration::from_millis(100));
        let writing = async {
            let chunk = vec![0; 1 << 20];
            for _ in 0..256 {
                watched.write_all(&chunk).await?;
            }
            Ok::<(), io::Error>(())
        };
        let outcome = tokio::time::timeout(Duration::from_secs(20), writing).await.expect("an end");
        assert_eq!(outcome.expect_err("no room for all of it").kind(), io::ErrorKind::TimedOut);
    }
}
