//! Listens, and holds every connection to its limits: how many there are, how many of one peer, how long a head may
//! take to arrive, how long an answer may lie unread.
//!
//! A plain `axum::serve` has none of these, so that a few hundred silent connections would shut everybody else out.
//! HTTP/1 only: behind a proxy that is what arrives, and multiplexed streams would need limits of their own.

mod activity;
mod leftover;
mod peers;
mod places;
mod stream;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower::Service as _;

use crate::domain::networks::Networks;
use crate::http::layer::spare::OnSpareConnection;
use activity::{Activity, Answer, Life};
use leftover::ReadToTheEnd;
use peers::Peers;
use places::{Places, SPARE_PLACES};
use stream::{WatchedStream, hung_up};
pub use tls::{Tls, TlsError};

/// Pause after the system had no socket for us; trying at once would only burn a core.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Longest head of a request, and what is read ahead of its body: this much memory a connection may cost.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What connections are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections at one time. For a newcomer beyond that the one makes way that has served nobody for the longest
    /// time; where all serve somebody, a few more are told of health alone. Well below the 1024 files that a process may
    /// have open by default.
    pub connections_max: usize,
    /// Most connections of one peer, so that one alone cannot take them all; further ones are closed. Peers on this
    /// machine are exempt: that is where a proxy is, which speaks for everybody.
    pub connections_per_peer_max: usize,
    /// Proxies elsewhere, which are exempt as well.
    pub trusted_proxies: Networks,
    /// Longest time for a request's head to arrive, and for an open connection to be silent between two requests.
    pub header_deadline: Duration,
    /// Longest time a peer may take none of an answer.
    pub write_stall_max: Duration,
    /// Most requests of one connection; its client comes back for the rest.
    pub requests_per_connection_max: u64,
    /// Longest time a connection takes requests.
    pub connection_age_max: Duration,
}

impl ConnectionLimits {
    /// The most files that an address takes with such connections: its own one, too.
    #[must_use]
    pub fn files_max(&self) -> usize {
        self.connections_max.saturating_add(SPARE_PLACES + 1)
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_peer_max: 256,
            trusted_proxies: Networks::default(),
            header_deadline: Duration::from_secs(15),
            write_stall_max: Duration::from_secs(30),
            requests_per_connection_max: 10_000,
            connection_age_max: Duration::from_hours(1),
        }
    }
}

/// How connections are served.
#[derive(Clone)]
struct Terms {
    limits: ConnectionLimits,
    tls: Option<Tls>,
    /// Ends when no more requests are taken.
    open: watch::Receiver<()>,
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
    let life = Life { requests_max: limits.requests_per_connection_max, age_max: limits.connection_age_max };
    let places = Places::new(limits.connections_max, life);
    let peers = Peers::new(limits.connections_per_peer_max, limits.trusted_proxies.clone());
    let (opened, open) = watch::channel(());
    let terms = Terms { limits, tls, open };
    let mut closing = pin!(closing);
    loop {
        let next = async {
            loop {
                let (stream, peer) = accept(&listener).await;
                let Some(share) = peers.enter(peer.ip()) else {
                    tracing::debug!(%peer, "too many connections of this peer");
                    continue;
                };
                // All others wait in the system's line, where they cost no file of ours.
                break (stream, peer, (places.take().await, share));
            }
        };
        let (stream, peer, (place, share)) = tokio::select! {
            next = next => next,
            () = &mut closing => break,
        };
        let (router, terms, watcher) = (router.clone(), terms.clone(), graceful.watcher());
        tokio::spawn(async move {
            let activity = place.activity.clone();
            let (stream, reading) = WatchedStream::new(stream, terms.limits.write_stall_max, activity.clone());
            let connection = Connection { peer, router, activity: activity.clone(), is_spare: place.is_spare };
            tokio::select! {
                biased;
                () = connection.run(stream, terms, watcher) => {}
                // Drops the handler of the request at hand, which is what a job that waits for its client goes by.
                () = hung_up(&reading) => tracing::debug!(%peer, "the peer has hung up"),
                () = activity.sent_away() => tracing::debug!(%peer, "an idle connection makes way for another"),
            }
            drop((place, share));
        });
    }
    drop((listener, opened));
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
struct Connection {
    peer: SocketAddr,
    router: Router,
    activity: Activity,
    is_spare: bool,
}

/// What comes of `handshake` in time, and while the worker is open.
async fn agree<T>(handshake: impl Future<Output = T>, deadline: Duration, open: &mut watch::Receiver<()>) -> Option<T> {
    let closed = async { while open.changed().await.is_ok() {} };
    tokio::select! {
        outcome = tokio::time::timeout(deadline, handshake) => outcome.ok(),
        () = closed => None,
    }
}

impl Connection {
    async fn run(self, stream: WatchedStream, Terms { limits, tls, mut open }: Terms, watcher: Watcher) {
        let peer = self.peer;
        let outcome = match tls {
            None => self.speak(stream, &limits, watcher).await,
            Some(tls) => match agree(tls.accept(stream), limits.header_deadline, &mut open).await {
                Some(Ok(secured)) => {
                    self.activity.forget();
                    self.speak(secured, &limits, watcher).await
                }
                Some(Err(error)) => {
                    tracing::debug!(%peer, %error, "no agreement on a secured connection");
                    return;
                }
                None => {
                    tracing::debug!(%peer, "no agreement on a secured connection in time");
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
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        limits: &ConnectionLimits,
        watcher: Watcher,
    ) -> hyper::Result<()> {
        let service = service_fn(move |request| self.answer(request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_deadline)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        watcher.watch(connection).await
    }

    fn answer(
        &self,
        request: hyper::Request<Incoming>,
    ) -> impl Future<Output = Result<hyper::Response<Answer>, Infallible>> + use<> {
        let exchange = self.activity.begin();
        let mut request = ReadToTheEnd::new(request, exchange.clone());
        request.extensions_mut().insert(ConnectInfo(self.peer));
        if self.is_spare {
            request.extensions_mut().insert(OnSpareConnection);
        }
        // A router is always ready.
        let answer = self.router.clone().call(request);
        async move { answer.await.map(|response| exchange.answered(response)) }
    }
}
