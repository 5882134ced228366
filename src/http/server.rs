//! Listens, and holds every connection to its limits: how many there are, how many of one peer, how long a head may
//! take to arrive, how long an answer may lie unread.
//!
//! A plain `axum::serve` has none of these, so that a few hundred silent connections would shut everybody else out.
//! HTTP/1 only: behind a proxy that is what arrives, and multiplexed streams would need limits of their own.

mod peers;
mod stream;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service as _;

use peers::Peers;
use stream::{WatchedStream, hung_up};
pub use tls::{Tls, TlsError};

/// Pause after the system had no socket for us; trying at once would only burn a core.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Longest head of a request, and what is read ahead of its body: this much memory a connection may cost.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What connections are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections at one time; further ones wait in the system's line. Well below the 1024 files that a process
    /// may have open by default.
    pub connections_max: usize,
    /// Most connections of one peer, so that one alone cannot take them all; further ones are closed. Peers on this
    /// machine are exempt: that is where a proxy is, which speaks for everybody.
    pub connections_per_peer_max: usize,
    /// Longest time for a request's head to arrive, and for an open connection to be silent between two requests.
    pub header_deadline: Duration,
    /// Longest time a peer may take none of an answer.
    pub write_stall_max: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_peer_max: 256,
            header_deadline: Duration::from_secs(15),
            write_stall_max: Duration::from_secs(30),
        }
    }
}

/// How connections are served.
#[derive(Clone)]
struct Terms {
    limits: ConnectionLimits,
    tls: Option<Tls>,
}

/// Serves until `closing` is done, by https where there is a certificate; then takes no more connections, lets each
/// finish the request it is at, and returns when all are gone. How long that may take is for the caller to say.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    closing: impl Future<Output = ()>,
    limits: ConnectionLimits,
    tls: Option<Tls>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let peers = Peers::new(limits.connections_per_peer_max);
    let terms = Terms { limits, tls };
    let mut closing = pin!(closing);
    loop {
        let next = async {
            // First a place, then a connection: those that wait do so where they cost no file of ours.
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            (place, accept(&listener).await)
        };
        let (place, (stream, peer)) = tokio::select! {
            next = next => next,
            () = &mut closing => break,
        };
        let Some(share) = peers.enter(peer.ip()) else {
            tracing::debug!(%peer, "too many connections of this peer");
            continue;
        };
        let (router, terms, watcher) = (router.clone(), terms.clone(), graceful.watcher());
        tokio::spawn(async move {
            let stream = Arc::new(stream);
            tokio::select! {
                biased;
                () = run(Arc::clone(&stream), peer, router, terms, watcher) => {}
                // Drops the handler of the request at hand, which is what a job that waits for its client goes by.
                () = hung_up(&stream) => tracing::debug!(%peer, "the peer has hung up"),
            }
            drop((place, share));
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The peer left before we came; the next one may be there already.
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection, from its first request to its end.
async fn run(stream: Arc<TcpStream>, peer: SocketAddr, router: Router, Terms { limits, tls }: Terms, watcher: Watcher) {
    let watched = WatchedStream::new(stream, limits.write_stall_max);
    let outcome = match tls {
        None => speak(watched, peer, router, &limits, watcher).await,
        Some(tls) => match tokio::time::timeout(limits.header_deadline, tls.accept(watched)).await {
            Ok(Ok(secured)) => speak(secured, peer, router, &limits, watcher).await,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "no agreement on a secured connection");
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, "the peer takes too long to agree on a secured connection");
                return;
            }
        },
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "a connection ended before its time");
    }
}

/// HTTP over a stream of bytes.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    limits: &ConnectionLimits,
    watcher: Watcher,
) -> hyper::Result<()> {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        // A router is always ready.
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_deadline)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    watcher.watch(connection).await
}
