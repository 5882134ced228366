//! Replaces a trusted proxy's address with its client's: for the log, the throttles, and everything else that uses it.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::domain::networks::Networks;
use crate::http::forwarded::client_of;

pub(in crate::http) async fn replace(State(trusted): State<Networks>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    if let Some(peer) = peer {
        let client = client_of(peer.ip(), request.headers(), &trusted);
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, peer.port())));
    }
    next.run(request).await
}
