//! Accepts connections and enforces their limits: their number, their number per peer, the time for a request's head to
//! arrive, the time an answer may stay unread.
//!
//! A plain `axum::serve` has none of these, so a few hundred silent connections would lock out all other clients.
//! HTTP/1 only: that is what proxies send, and multiplexed streams would need their own limits.

mod activity;
mod connection_slots;
mod drained_body;
mod observed_body;
mod peers;
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
use activity::{Activity, Answer, KeepAliveLimits};
use connection_slots::{ConnectionSlots, SPARE_SLOTS};
use drained_body::Drain;
use peers::Peers;
use stream::{WatchedStream, hung_up};
pub use tls::{Tls, TlsError};

/// Pause after the system ran out of sockets; an immediate retry would only burn a core.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Longest head of a request including what is read ahead of its body: the memory that a connection may cost.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Limits of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Maximum connections at one time. Beyond that, a new connection replaces the one that has been idle the longest; if
    /// none is idle, a few more connections may only check health. Well below the 1024 files that a process may have
    /// open by default.
    pub connections_max: usize,
    /// Maximum connections of one peer, so that it cannot take them all; further ones are closed. Peers on this machine
    /// are exempt: a proxy there serves all clients.
    pub connections_per_peer_max: usize,
    /// Proxies on other machines, which are exempt as well.
    pub trusted_proxies: Networks,
    /// Longest time for a request's head to arrive, and longest silence between two requests.
    pub header_deadline: Duration,
    /// Longest time a peer may read nothing of an answer.
    pub write_stall_max: Duration,
    /// Maximum requests of one connection; its client reconnects for the rest.
    pub requests_per_connection_max: u64,
    /// Longest time a connection accepts requests.
    pub connection_age_max: Duration,
}

impl ConnectionLimits {
    /// The most files that a listener uses with its connections.
    #[must_use]
    pub fn files_max(&self) -> usize {
        self.connections_max.saturating_add(SPARE_SLOTS + 1)
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

/// How to serve connections.
#[derive(Clone)]
struct ServeOptions {
    limits: ConnectionLimits,
    tls: Option<Tls>,
    /// Ends when no more requests are accepted.
    open: watch::Receiver<()>,
}

/// Serves until `closing` is done, over https if there is a certificate. Then accepts no more connections, lets each
/// finish its present request, and returns when all are closed. The caller bounds that time.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    closing: impl Future<Output = ()>,
    limits: ConnectionLimits,
    tls: Option<Tls>,
) {
    let graceful = GracefulShutdown::new();
    let keep_alive =
        KeepAliveLimits { requests_max: limits.requests_per_connection_max, age_max: limits.connection_age_max };
    let slots = ConnectionSlots::new(limits.connections_max, keep_alive);
    let peers = Peers::new(limits.connections_per_peer_max, limits.trusted_proxies.clone());
    let (opened, open) = watch::channel(());
    let options = ServeOptions { limits, tls, open };
    let mut closing = pin!(closing);
    loop {
        let next = async {
            loop {
                let (stream, peer) = accept(&listener).await;
                let Some(permit) = peers.enter(peer.ip()) else {
                    tracing::debug!(%peer, "connection closed: its peer has too many");
                    continue;
                };
                // All others wait in the system's backlog, where they cost no file.
                break (stream, peer, (slots.take().await, permit));
            }
        };
        let (stream, peer, (slot, permit)) = tokio::select! {
            next = next => next,
            () = &mut closing => break,
        };
        let (router, options, watcher) = (router.clone(), options.clone(), graceful.watcher());
        tokio::spawn(async move {
            let activity = slot.activity.clone();
            let (stream, reading) = WatchedStream::new(stream, options.limits.write_stall_max, activity.clone());
            let connection = Connection { peer, router, activity: activity.clone(), is_spare: slot.is_spare };
            tokio::select! {
                biased;
                () = connection.run(stream, options, watcher) => {}
                // Drops the present request's handler; a job that depends on its client is then canceled.
                () = hung_up(&reading) => tracing::debug!(%peer, "the peer has hung up"),
                () = activity.evicted() => tracing::debug!(%peer, "idle connection closed to make room for a new one"),
            }
            drop((slot, permit));
        });
    }
    drop((listener, opened));
    graceful.shutdown().await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The peer left before it was accepted; the next one may be waiting.
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn is_connection_error(error: &io::Error) -> bool {
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

/// The outcome of `handshake`; `None` after the deadline or when the worker closes.
async fn finish_in_time<T>(
    handshake: impl Future<Output = T>,
    deadline: Duration,
    open: &mut watch::Receiver<()>,
) -> Option<T> {
    let closed = async { while open.changed().await.is_ok() {} };
    tokio::select! {
        outcome = tokio::time::timeout(deadline, handshake) => outcome.ok(),
        () = closed => None,
    }
}

impl Connection {
    async fn run(self, stream: WatchedStream, ServeOptions { limits, tls, mut open }: ServeOptions, watcher: Watcher) {
        let peer = self.peer;
        let outcome = match tls {
            None => self.speak(stream, &limits, watcher).await,
            Some(tls) => match finish_in_time(tls.accept(stream), limits.header_deadline, &mut open).await {
                Some(Ok(secured)) => {
                    self.activity.forget_received();
                    self.speak(secured, &limits, watcher).await
                }
                Some(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    return;
                }
                None => {
                    tracing::debug!(%peer, "TLS handshake timed out");
                    return;
                }
            },
        };
        if let Err(error) = outcome {
            tracing::debug!(%peer, %error, "connection ended early");
        }
    }

    /// Speaks HTTP over a byte stream.
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
        let mut request = Drain::wrap(request, exchange.clone());
        request.extensions_mut().insert(ConnectInfo(self.peer));
        if self.is_spare {
            request.extensions_mut().insert(OnSpareConnection);
        }
        // A router is always ready.
        let answer = self.router.clone().call(request);
        async move { answer.await.map(|response| exchange.answered(response)) }
    }
}
