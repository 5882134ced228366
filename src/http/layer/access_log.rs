//! Logs and counts every request. Never includes a header, a query (links are secrets) or a body; the path is the
//! route's template.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use crate::telemetry::metrics;

pub(in crate::http) async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = word(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let response = next.run(request).await;
    let took = started.elapsed();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let status = response.status().as_u16();
    let milliseconds = took.as_secs_f64() * 1000.0;
    tracing::info!(method, route, status, milliseconds, peer = peer.map(tracing::field::display), "answered");
    metrics::request_answered(route, method, status, took);
    response
}

/// A fixed set: clients can invent methods, and each would be a new time series.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
