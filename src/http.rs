//! The HTTP API: routes, extractors, answers and errors. Does not use candle or SQL.
//!
//! Owns the wire format. [`routes`] has the table of all routes, [`error`] the table of all errors. Must not know how keys
//! are checked, how jobs are stored, or the inside of the queue.

mod admin;
mod api;
mod base_url;
mod console;
mod cors;
mod dialect;
pub mod error;
mod extract;
mod forwarded;
mod hosts;
mod layer;
mod openapi;
mod origin;
mod quota;
mod route;
mod routes;
mod same_origin;
mod server;
mod session_cookie;
mod settings;
mod state;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderValue;
use axum::http::header::{STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::{from_fn, from_fn_with_state};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

pub use cors::Sharing;
pub use hosts::Hosts;
pub use route::{Access, Route};
pub use routes::routes;
pub use server::{ConnectionLimits, Tls, TlsError, serve};
pub use settings::HttpSettings;
pub use state::HttpParts;

use crate::jobs::JobReport;
use error::{ApiError, ErrorCode};
use extract::body::BodyBudget;
use hosts::HEALTH_PATHS;
use route::is_of_sdapi;
use routes::table;
use state::{HttpState, Shared};

/// Browsers use only https for thirty days. Applies to the host on every port, so subdomains are not included.
const TRANSPORT_SECURITY: &str = "max-age=2592000";

/// The OpenAPI 3.1 document as JSON.
pub fn openapi_json() -> String {
    let rows = table().into_iter().map(|(route, _, operation)| (route, operation));
    openapi::json(&openapi::document(rows))
}

/// A job as its owner gets it from `GET /v1/inference/jobs/{job_id}`, with URLs that begin with `origin`.
pub fn job_json(report: &JobReport, origin: &str) -> serde_json::Value {
    let view = api::jobs::JobView::new(report, &origin::Origin::kept(origin));
    serde_json::to_value(view).expect("a job is plain data")
}

/// The HTTP API as services for [`serve`], which adds the peer's address for throttling.
pub struct Routers {
    /// The routes for clients, and for the administrator unless `management` is separate.
    pub clients: Router,
    /// Console and management routes and the routes without a key, if [`HttpSettings::has_own_management`] is set.
    pub management: Option<Router>,
    /// Metrics and health, without authentication: to be served where clients have no access.
    pub metrics: Router,
}

/// Builds the routers from `parts`.
pub fn routers(parts: HttpParts) -> Routers {
    let management = routes().into_iter().filter(|route| matches!(route.access, Access::SignIn | Access::Session));
    let bodies = BodyBudget::new(parts.settings.bodies_bytes_max, parts.settings.key_bodies_bytes_max);
    let images = api::input_images::ImageDecoder::new(parts.uploads.clone());
    let shared = Shared {
        started_at: parts.keys.now(),
        parts,
        write_check: api::write_check::WriteCheck::default(),
        images,
        sdapi: api::sdapi::session::Sessions::default(),
        bodies: Arc::new(bodies),
        document: openapi_json().into(),
        management_paths: management.map(|route| route.path).collect(),
    };
    let state = HttpState(Arc::new(shared));
    let settings = &state.settings;
    let has_tls = settings.has_tls;
    // Elsewhere such a path is unknown, whatever the key.
    let is_there = |route: &Route| settings.has_sdapi || !is_of_sdapi(route.path);
    let clients = Listener { has_tls, hosts: &settings.hosts };
    let metrics = Listener { has_tls: false, hosts: &settings.metrics_hosts };
    let metrics = with_layers(routes_of(is_of_metrics), &state, metrics);
    if !settings.has_own_management {
        let wanted = routes_of(|route| route.access != Access::Metrics && is_there(route));
        let clients = with_layers(wanted, &state, clients);
        return Routers { clients, management: None, metrics };
    }
    let management = Listener { has_tls, hosts: &settings.management_hosts };
    Routers {
        clients: with_layers(routes_of(|route| is_of_clients(route) && is_there(route)), &state, clients),
        management: Some(with_layers(routes_of(is_of_management), &state, management)),
        metrics,
    }
}

fn is_of_clients(route: &Route) -> bool {
    !route.access.is_management() && route.access != Access::Metrics
}

fn is_of_management(route: &Route) -> bool {
    route.access.is_management() || route.access == Access::Anyone
}

fn is_of_metrics(route: &Route) -> bool {
    route.access == Access::Metrics || HEALTH_PATHS.contains(&route.path)
}

/// Settings of the listener that serves a router.
#[derive(Clone, Copy)]
struct Listener<'a> {
    has_tls: bool,
    hosts: &'a Hosts,
}

fn routes_of(is_wanted: impl Fn(&Route) -> bool) -> Router<HttpState> {
    let wanted = table().into_iter().filter(|(route, ..)| is_wanted(route));
    wanted.fold(Router::new(), |router, (route, handler, _)| router.route(route.path, handler))
}

fn with_layers(router: Router<HttpState>, state: &HttpState, listener: Listener<'_>) -> Router {
    let header = SetResponseHeaderLayer::<HeaderValue>::overriding;
    let transport = listener.has_tls.then(|| HeaderValue::from_static(TRANSPORT_SECURITY));
    let paths = routes().into_iter().filter(|route| route.access.is_shared()).map(|route| route.path);
    let shared = state.settings.sharing.shared(paths.collect());
    // Outermost last: the request id exists before anything is logged, and a panic is still answered.
    router
        .fallback(base_url::not_found)
        .method_not_allowed_fallback(|| async { ApiError::new(ErrorCode::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(state.settings.body_bytes_max))
        .layer(from_fn_with_state(state.clone(), layer::management::guard))
        .layer(from_fn_with_state(state.clone(), layer::deadline::limit))
        .layer(CatchPanicLayer::custom(layer::panic::answer))
        .layer(option_layer(shared.map(|shared| from_fn_with_state(shared, layer::cors::share))))
        .layer(from_fn_with_state(listener.hosts.clone(), layer::host::check))
        .layer(from_fn(layer::spare::hold))
        .layer(from_fn(layer::access_log::record))
        .layer(from_fn(layer::request_id::attach))
        .layer(from_fn_with_state(state.settings.trusted_proxies.clone(), layer::client_address::replace))
        .layer(header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .layer(option_layer(transport.map(|value| header(STRICT_TRANSPORT_SECURITY, value))))
        .with_state(state.clone())
}
