//! The HTTP surface: routes, extractors, answers and the one table of errors. Knows nothing of candle or SQL.
//!
//! Owns what goes over the wire. [`routes`] is the table of all routes; [`error`] the table of all errors. Must not
//! know how keys are checked, how jobs are stored, or the inside of the queue.

mod admin;
mod api;
pub mod error;
mod extract;
mod layer;
mod origin;
mod quota;
mod same_origin;
mod server;
mod session_cookie;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, patch, post};
use tower_http::catch_panic::CatchPanicLayer;

pub use server::{ConnectionLimits, serve};

use crate::auth::{AdminService, Authenticator, KeyService};
use crate::catalog::Catalog;
use crate::jobs::JobService;
use crate::telemetry::metrics::MetricsHandle;
use error::{ApiError, ErrorCode};

/// What the surface is held to.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Longest time a client may take to send its body.
    pub body_deadline: Duration,
    /// Longest wait that `Prefer: wait` can ask for, and the wait for a picture as the answer.
    pub wait_max: Duration,
    /// Longest time any request may take; above `wait_max`.
    pub request_deadline: Duration,
    /// Where clients reach this worker, e.g. `https://images.example.org`. `None`: as the `Host` header says, by http.
    pub public_url: Option<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 2 * 1024 * 1024,
            body_deadline: Duration::from_secs(30),
            wait_max: Duration::from_mins(5),
            request_deadline: Duration::from_mins(6),
            public_url: None,
        }
    }
}

/// What the surface is made of.
pub struct HttpParts {
    /// The life of jobs.
    pub jobs: JobService,
    /// The models.
    pub catalog: Arc<Catalog>,
    /// Who may come in.
    pub authenticator: Authenticator,
    /// The keys, for the administrator.
    pub keys: KeyService,
    /// Who the administrator is, and what was done.
    pub admin: AdminService,
    /// What `/metrics` shows; `None` where nothing is counted.
    pub metrics: Option<MetricsHandle>,
    /// What it is held to.
    pub settings: HttpSettings,
}

/// What every handler can reach.
#[derive(Clone)]
struct HttpState(Arc<Shared>);

struct Shared {
    parts: HttpParts,
    write_check: api::health::WriteCheck,
    /// The paths, as the table has them, that need a password to exist.
    management_paths: HashSet<&'static str>,
}

impl std::ops::Deref for HttpState {
    type Target = HttpParts;

    fn deref(&self) -> &HttpParts {
        &self.0.parts
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Anyone,
    /// A key whose scope allows inference.
    Inference,
    /// A key whose scope allows inference, or a signed link.
    InferenceOrLink,
    /// Peers on this machine; to others it is not there.
    Loopback,
    /// Who knows the administrator's password. Without a password it is not there.
    SignIn,
    /// Who has signed in. Without a password it is not there.
    Session,
}

/// One row of the table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path; names in braces stand for one segment each.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
}

type Row = (Route, MethodRouter<HttpState>);

fn row(access: Access, method: &'static str, path: &'static str, handler: MethodRouter<HttpState>) -> Row {
    (Route { method, path, access }, handler)
}

/// Every route there is.
#[rustfmt::skip]
fn table() -> Vec<Row> {
    use Access::{Anyone, Inference, InferenceOrLink, Loopback, Session, SignIn};
    vec![
        row(Inference,       "POST",   "/v1/inference/image",                post(api::inference::submit)),
        row(Inference,       "GET",    "/v1/inference/jobs",                 get(api::jobs::list)),
        row(Inference,       "GET",    "/v1/inference/jobs/{job_id}",        get(api::jobs::show)),
        row(Inference,       "DELETE", "/v1/inference/jobs/{job_id}",        delete(api::jobs::cancel)),
        row(InferenceOrLink, "GET",    "/v1/inference/jobs/{job_id}/result", get(api::jobs::result)),
        row(Anyone,          "GET",    "/v1/inference/models",               get(api::catalog::models)),
        row(Anyone,          "GET",    "/v1/inference/runtime/models",       get(api::catalog::runtime_models)),
        row(SignIn,          "POST",   "/v1/session",                        post(admin::session::sign_in)),
        row(Session,         "GET",    "/v1/session",                        get(admin::session::show)),
        row(Session,         "DELETE", "/v1/session",                        delete(admin::session::sign_out)),
        row(Session,         "GET",    "/v1/api-keys",                       get(admin::api_keys::list)),
        row(Session,         "POST",   "/v1/api-keys",                       post(admin::api_keys::create)),
        row(Session,         "GET",    "/v1/api-keys/{key_id}",              get(admin::api_keys::show)),
        row(Session,         "PATCH",  "/v1/api-keys/{key_id}",              patch(admin::api_keys::edit)),
        row(Session,         "DELETE", "/v1/api-keys/{key_id}",              delete(admin::api_keys::revoke)),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/rotate",       post(admin::api_keys::rotate)),
        row(Session,         "GET",    "/v1/api-keys/{key_id}/usage",        get(admin::usage::show)),
        row(Session,         "GET",    "/v1/audit",                          get(admin::audit::list)),
        row(Anyone,          "GET",    "/healthz",                           get(api::health::alive)),
        row(Anyone,          "GET",    "/readyz",                            get(api::health::ready)),
        row(Loopback,        "GET",    "/metrics",                           get(api::health::metrics)),
    ]
}

/// Every route there is, without its handler.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(route, _)| route).collect()
}

/// The whole surface as one service, for [`serve`]: throttling by address and `/metrics` need to know the peer.
pub fn router(parts: HttpParts) -> Router {
    let body_bytes_max = parts.settings.body_bytes_max;
    let management = routes().into_iter().filter(|route| matches!(route.access, Access::SignIn | Access::Session));
    let shared = Shared {
        parts,
        write_check: api::health::WriteCheck::default(),
        management_paths: management.map(|route| route.path).collect(),
    };
    let state = HttpState(Arc::new(shared));
    let mut router = Router::new();
    for (route, handler) in table() {
        router = router.route(route.path, handler);
    }
    // Outermost last: the request id is there before anything is logged, and whatever panics is still answered.
    router
        .fallback(|| async { ApiError::new(ErrorCode::NotFound) })
        .method_not_allowed_fallback(|| async { ApiError::new(ErrorCode::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(from_fn_with_state(state.clone(), layer::management::guard))
        .layer(from_fn_with_state(state.clone(), layer::deadline::limit))
        .layer(CatchPanicLayer::custom(layer::panic::answer))
        .layer(from_fn(layer::access_log::record))
        .layer(from_fn(layer::request_id::attach))
        .with_state(state)
}
