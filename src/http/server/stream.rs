//! A TCP stream that ends when its peer stops reading, that detects a hang-up even while received bytes are unread, and
//! that lingers when it closes: if a stream is dropped with unread bytes, the system discards the answer and resets the
//! connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

use super::activity::Activity;

/// How often a stream with unread bytes is checked for a hang-up.
const HANG_UP_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Time for a connection after its peer has hung up, to read what was sent before and to answer it.
const HANG_UP_GRACE: Duration = Duration::from_millis(250);

/// Longest time to keep reading after the answer, until the peer has closed its side.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// Longest silence during that time.
const LINGER_QUIET_MAX: Duration = Duration::from_secs(1);
/// Maximum bytes to read during that time.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes to read at one time.
const LINGER_CHUNK_BYTES: usize = 16 * 1024;

/// The stream for the HTTP implementation.
pub(super) struct WatchedStream {
    reading: Arc<OwnedReadHalf>,
    writing: OwnedWriteHalf,
    write_stall_max: Duration,
    /// Runs while the peer reads nothing.
    stall: Option<Pin<Box<Sleep>>>,
    activity: Activity,
    linger: Option<Linger>,
}

/// The state of a stream that lingers.
struct Linger {
    end: Pin<Box<Sleep>>,
    quiet: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    fn new() -> Self {
        Self {
            end: Box::pin(tokio::time::sleep(LINGER_MAX)),
            quiet: Box::pin(tokio::time::sleep(LINGER_QUIET_MAX)),
            bytes_left: LINGER_BYTES_MAX,
        }
    }

    /// Reads and discards until the peer has closed its side, or a limit is reached.
    fn poll(&mut self, stream: &TcpStream, context: &mut Context<'_>) -> Poll<()> {
        let mut nothing = [0; LINGER_CHUNK_BYTES];
        while self.bytes_left > 0 && self.end.as_mut().poll(context).is_pending() {
            match stream.poll_read_ready(context) {
                Poll::Pending => return self.quiet.as_mut().poll(context),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            match stream.try_read(&mut nothing) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => {
                    self.bytes_left = self.bytes_left.saturating_sub(count);
                    self.quiet = Box::pin(tokio::time::sleep(LINGER_QUIET_MAX));
                }
            }
        }
        Poll::Ready(())
    }
}

impl WatchedStream {
    /// The stream, and its read half for [`hung_up`].
    pub(super) fn new(stream: TcpStream, write_stall_max: Duration, activity: Activity) -> (Self, Arc<OwnedReadHalf>) {
        let (reading, writing) = stream.into_split();
        let reading = Arc::new(reading);
        let watched =
            Self { reading: Arc::clone(&reading), writing, write_stall_max, stall: None, activity, linger: None };
        (watched, reading)
    }

    fn stream(&self) -> &TcpStream {
        self.writing.as_ref()
    }

    fn poll_written(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(writable) = self.stream().poll_write_ready(context) {
            writable?;
            match write(self.stream()) {
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
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answer")))
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream().poll_read_ready(context))?;
            match self.stream().try_read(into.initialize_unfilled()) {
                Ok(count) => {
                    into.advance(count);
                    if count > 0 {
                        self.activity.note_received();
                    }
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

    /// Closes the write side. If the peer may still be sending, keeps reading until it has noticed.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.writing).poll_shutdown(context))?;
            if self.activity.is_quiet() {
                return Poll::Ready(Ok(()));
            }
        }
        let Self { reading, linger, .. } = &mut *self;
        linger.get_or_insert_with(Linger::new).poll((**reading).as_ref(), context).map(Ok)
    }
}

/// Returns a moment after the peer has closed its side. The HTTP implementation notices that only by reading, and does
/// not read while it has unread bytes: the work for a client that sent more bytes after its request and left would be
/// wasted. A client that closes its side early but still waits for the answer counts as gone, as it does for the HTTP
/// implementation.
pub(super) async fn hung_up(stream: &OwnedReadHalf) {
    // The HTTP implementation reports errors of the stream.
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
    use crate::http::server::activity::KeepAliveLimits;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_disconnected() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.expect("a connection");
        let limits = KeepAliveLimits { requests_max: 1, age_max: Duration::MAX };
        let (mut watched, _) = WatchedStream::new(stream, Duration::from_millis(100), Activity::new(limits));
        let writing = async {
            let chunk = vec![0; 1 << 20];
            for _ in 0..256 {
                watched.write_all(&chunk).await?;
            }
            Ok::<(), io::Error>(())
        };
        let outcome = tokio::time::timeout(Duration::from_secs(20), writing).await.expect("an end");
        assert_eq!(outcome.expect_err("buffers cannot hold all of it").kind(), io::ErrorKind::TimedOut);
    }
}
