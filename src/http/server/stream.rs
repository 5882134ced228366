//! A TCP stream that ends when its peer no longer takes what is written, that tells when its peer has hung up even
//! while bytes of the peer lie unread, and that closes lingering: the system throws away what was answered, and tells the
//! peer of a broken connection, where a stream is dropped with bytes of the peer unread.

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

/// How often a stream with unread bytes is asked whether its peer is still there.
const HANG_UP_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// What is left to a connection after its peer has hung up, to read what was sent before and to answer it.
const HANG_UP_GRACE: Duration = Duration::from_millis(250);

/// Longest time to go on reading after the last word, until the peer has closed its side.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// Longest time without a byte in which that is waited for.
const LINGER_QUIET_MAX: Duration = Duration::from_secs(1);
/// Most bytes that are read then.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes read then at one time.
const LINGER_CHUNK_BYTES: usize = 16 * 1024;

/// The stream as the HTTP implementation gets it.
pub(super) struct WatchedStream {
    reading: Arc<OwnedReadHalf>,
    writing: OwnedWriteHalf,
    write_stall_max: Duration,
    /// Runs while the peer takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
    activity: Activity,
    linger: Option<Linger>,
}

/// A stream whose last word is said.
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

    /// Reads and drops until the peer has closed its side, or long enough.
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
    /// The stream, and what tells whether its peer has [`hung_up`].
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
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not take its answer")))
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
                        self.activity.hear();
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

    /// Says that nothing more comes, and where the peer may still be sending, reads on until it has heard that.
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
/// not read on while it has unread bytes: a client that sends something behind its request and leaves would be worked
/// for in vain. A client that closes its side early and still wants its answer counts as one that has left, as it does
/// for the HTTP implementation.
pub(super) async fn hung_up(stream: &OwnedReadHalf) {
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
    use crate::http::server::activity::Life;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.expect("a connection");
        let life = Life { requests_max: 1, age_max: Duration::MAX };
        let (mut watched, _) = WatchedStream::new(stream, Duration::from_millis(100), Activity::new(life));
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
