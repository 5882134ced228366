//! The HTTP surface: routes, extractors, answers and the one table of errors. Knows nothing of candle or SQL.
//!
//! Owns what goes over the wire. [`routes`] is the table of all routes; [`error`] the table of all errors. Must not
//! know how keys are checked, how jobs are stored, or the inside of the queue.

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
mod same_origin;
mod server;
mod session_cookie;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderValue;
use axum::http::header::{STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, patch, post};
use time::OffsetDateTime;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

pub use cors::Sharing;
pub use hosts::Hosts;
pub use server::{ConnectionLimits, Tls, TlsError, serve};

use crate::auth::{AdminService, Authenticator, KeyService};
use crate::catalog::Catalog;
use crate::domain::ids::ModelId;
use crate::domain::model::ModelCard;
use crate::domain::networks::Networks;
use crate::jobs::JobService;
use crate::kubernetes::Kubernetes;
use crate::telemetry::metrics::MetricsHandle;
use error::{ApiError, ErrorCode};
use extract::body::BodyBudget;
use hosts::HEALTH_PATHS;
use openapi::Operation;

/// For thirty days browsers come by https alone. It goes by the host whatever the port, so that it says nothing of
/// other names.
const TRANSPORT_SECURITY: &str = "max-age=2592000";

/// What the surface is held to.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Most that all large bodies take up at one time, in bytes.
    pub bodies_bytes_max: usize,
    /// Most of it that those of one key take up. One body they may always have.
    pub key_bodies_bytes_max: usize,
    /// Longest time a client may take to send its body.
    pub body_deadline: Duration,
    /// Longest wait that `Prefer: wait` can ask for, and the wait for an image as the answer.
    pub wait_max: Duration,
    /// Longest time any request may take; above `wait_max`.
    pub request_deadline: Duration,
    /// Longest life of one event stream; its client comes back for the rest.
    pub event_stream_max: Duration,
    /// How long an event stream is silent at most.
    pub event_heartbeat: Duration,
    /// Where clients reach this worker, e.g. `https://images.example.org`. `None`: as the `Host` header says.
    pub public_url: Option<String>,
    /// Where clients on this machine reach this worker. Of use where the administrator is at another address.
    pub local_url: Option<String>,
    /// Whether it is served by https.
    pub has_tls: bool,
    /// Whether console and management routes are served at an address of their own.
    pub has_own_management: bool,
    /// Which pages of other sites may use the routes that go by a key.
    pub sharing: Sharing,
    /// Who may say of others that it speaks for them.
    pub trusted_proxies: Networks,
    /// By which names clients come.
    pub hosts: Hosts,
    /// By which names the administrator comes, at an address of its own.
    pub management_hosts: Hosts,
    /// By which names those come who read metrics.
    pub metrics_hosts: Hosts,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 2 * 1024 * 1024,
            bodies_bytes_max: 256 * 1024 * 1024,
            key_bodies_bytes_max: 64 * 1024 * 1024,
            body_deadline: Duration::from_secs(30),
            wait_max: Duration::from_mins(5),
            request_deadline: Duration::from_mins(6),
            event_stream_max: Duration::from_mins(5),
            event_heartbeat: Duration::from_secs(15),
            public_url: None,
            local_url: None,
            has_tls: false,
            has_own_management: false,
            sharing: Sharing::None,
            trusted_proxies: Networks::default(),
            hosts: Hosts::Any,
            management_hosts: Hosts::Any,
            metrics_hosts: Hosts::Any,
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
    /// The cluster, and who is let into it.
    pub kubernetes: Kubernetes,
    /// What images are drawn on, in words for the administrator.
    pub device: String,
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
    images: api::input_images::ImageDecoder,
    bodies: Arc<BodyBudget>,
    started_at: OffsetDateTime,
    /// The API's description, as JSON.
    document: Bytes,
    /// The paths, as the table has them, that need a password to exist.
    management_paths: HashSet<&'static str>,
}

impl HttpState {
    /// The card of the model that a request names.
    fn card_of(&self, model: &ModelId) -> Result<&Arc<ModelCard>, ApiError> {
        match (self.catalog.card(model), self.catalog.not_yet(model)) {
            (Some(card), _) => Ok(card),
            (None, Some(reason)) => {
                let detail = format!("the model does not work yet: {reason}");
                Err(ApiError::new(ErrorCode::ModelUnavailable).with_detail(detail))
            }
            (None, None) => Err(ApiError::new(ErrorCode::ModelNotFound)),
        }
    }
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
    /// A key whose scope allows the namespace that the path names.
    Kubernetes,
    /// A key whose scope allows inference, or a signed link.
    InferenceOrLink,
    /// Whoever reaches the address that metrics have of their own; elsewhere it is not there.
    Metrics,
    /// Who knows the administrator's password. Without a password it is not there.
    SignIn,
    /// Who has signed in. Without a password it is not there.
    Session,
    /// Everyone; stands where the management routes stand.
    Page,
}

impl Access {
    /// Whether it is for the administrator.
    fn is_management(self) -> bool {
        matches!(self, Self::SignIn | Self::Session | Self::Page)
    }
}

/// One row of the table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path; names in braces stand for one segment each, one with a star for all that is left.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
}

impl Route {
    /// The path as the API's description has it, which knows no stars.
    pub fn documented_path(&self) -> String {
        self.path.replace("{*", "{")
    }
}

type Row = (Route, MethodRouter<HttpState>, Operation);

fn row(
    access: Access,
    method: &'static str,
    path: &'static str,
    handler: MethodRouter<HttpState>,
    operation: Operation,
) -> Row {
    (Route { method, path, access }, handler, operation)
}

/// Every route there is, and what the API's description says of it.
#[rustfmt::skip]
fn table() -> Vec<Row> {
    use Access::{Anyone, Inference, InferenceOrLink, Kubernetes, Metrics, Page, Session, SignIn};
    use admin::{api_keys, audit, jobs as all_jobs, kubernetes, overview, playground, session, usage};
    use api::openai::{images, models};
    use api::{catalog, events, exec_credential, health, inference, jobs};
    vec![
        row(Inference,       "POST",   "/v1/inference/image",                                      post(inference::submit),      inference::submit_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs",                                       get(jobs::list),              jobs::list_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs/{job_id}",                              get(jobs::show),              jobs::show_operation()),
        row(Inference,       "DELETE", "/v1/inference/jobs/{job_id}",                              delete(jobs::cancel),         jobs::cancel_operation()),
        row(Inference,       "GET",    "/v1/inference/jobs/{job_id}/events",                       get(events::follow),          events::follow_operation()),
        row(InferenceOrLink, "GET",    "/v1/inference/jobs/{job_id}/result",                       get(jobs::result),            jobs::result_operation()),
        row(Anyone,          "GET",    "/v1/inference/models",                                     get(catalog::models),         catalog::models_operation()),
        row(Anyone,          "GET",    "/v1/inference/runtime/models",                             get(catalog::runtime_models), catalog::runtime_models_operation()),
        row(Inference,       "POST",   "/v1/images/generations",                                   post(images::generate),       images::generate_operation()),
        row(Anyone,          "GET",    "/v1/models",                                               get(models::list),            models::list_operation()),
        row(Anyone,          "GET",    "/v1/models/{*model}",                                      get(models::show),            models::show_operation()),
        row(SignIn,          "POST",   "/v1/session",                                              post(session::sign_in),       session::sign_in_operation()),
        row(Session,         "GET",    "/v1/session",                                              get(session::show),           session::show_operation()),
        row(Session,         "DELETE", "/v1/session",                                              delete(session::sign_out),    session::sign_out_operation()),
        row(Session,         "GET",    "/v1/api-keys",                                             get(api_keys::list),          api_keys::list_operation()),
        row(Session,         "POST",   "/v1/api-keys",                                             post(api_keys::create),       api_keys::create_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}",                                    get(api_keys::show),          api_keys::show_operation()),
        row(Session,         "PATCH",  "/v1/api-keys/{key_id}",                                    patch(api_keys::edit),        api_keys::edit_operation()),
        row(Session,         "DELETE", "/v1/api-keys/{key_id}",                                    delete(api_keys::revoke),     api_keys::revoke_operation()),
        row(Session,         "POST",   "/v1/api-keys/{key_id}/rotate",                             post(api_keys::rotate),       api_keys::rotate_operation()),
        row(Session,         "GET",    "/v1/api-keys/{key_id}/usage",                              get(usage::show),             usage::show_operation()),
        row(Session,         "GET",    "/v1/kubernetes",                                           get(kubernetes::cluster),     kubernetes::cluster_operation()),
        row(Session,         "GET",    "/v1/kubernetes/namespaces",                                get(kubernetes::list),        kubernetes::list_operation()),
        row(Session,         "POST",   "/v1/kubernetes/namespaces",                                post(kubernetes::create),     kubernetes::create_operation()),
        row(Session,         "PATCH",  "/v1/kubernetes/namespaces/{namespace_id}",                 patch(kubernetes::edit),      kubernetes::edit_operation()),
        row(Session,         "DELETE", "/v1/kubernetes/namespaces/{namespace_id}",                 delete(kubernetes::remove),   kubernetes::remove_operation()),
        row(Session,         "GET",    "/v1/kubernetes/namespaces/{namespace_id}/kubeconfig",      get(kubernetes::kubeconfig),  kubernetes::kubeconfig_operation()),
        row(Kubernetes,      "POST",   "/v1/kubernetes/namespaces/{namespace_id}/exec-credential", post(exec_credential::issue), exec_credential::issue_operation()),
        row(Session,         "GET",    "/v1/audit",                                                get(audit::list),             audit::list_operation()),
        row(Session,         "GET",    "/v1/overview",                                             get(overview::show),          overview::show_operation()),
        row(Session,         "POST",   "/v1/playground/image",                                     post(playground::submit),     playground::submit_operation()),
        row(Session,         "GET",    "/v1/jobs",                                                 get(all_jobs::list),          all_jobs::list_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}",                                        get(all_jobs::show),          all_jobs::show_operation()),
        row(Session,         "DELETE", "/v1/jobs/{job_id}",                                        delete(all_jobs::cancel),     all_jobs::cancel_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/events",                                 get(all_jobs::follow),        all_jobs::follow_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/preview",                                get(all_jobs::preview),       all_jobs::preview_operation()),
        row(Session,         "GET",    "/v1/jobs/{job_id}/result",                                 get(all_jobs::result),        all_jobs::result_operation()),
        row(Page,            "GET",    "/admin",                                                   get(self::console::page),     self::console::page_operation()),
        row(Page,            "GET",    "/admin/assets/{file}",                                     get(self::console::asset),    self::console::asset_operation()),
        row(Anyone,          "GET",    "/openapi.json",                                            get(openapi::serve),          openapi::serve_operation()),
        row(Anyone,          "GET",    "/healthz",                                                 get(health::alive),           health::alive_operation()),
        row(Anyone,          "GET",    "/readyz",                                                  get(health::ready),           health::ready_operation()),
        row(Metrics,         "GET",    "/metrics",                                                 get(health::metrics),         health::metrics_operation()),
    ]
}

/// Every route there is, without its handler.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(route, _, _)| route).collect()
}

/// The API's description: OpenAPI 3.1, as JSON.
pub fn openapi_json() -> String {
    let rows = table().into_iter().map(|(route, _, operation)| (route, operation));
    openapi::json(&openapi::document(rows))
}

/// The surface as services, for [`serve`]: throttling by address needs to know the peer.
pub struct Routers {
    /// What clients use; and the administrator, too, unless there is another one for that.
    pub clients: Router,
    /// Console and management routes, with all that needs no key. Where [`HttpSettings::has_own_management`] says so.
    pub management: Option<Router>,
    /// Metrics, for whoever reaches it, and health: to be served where clients do not come.
    pub metrics: Router,
}

/// The whole surface, made of `parts`.
pub fn routers(parts: HttpParts) -> Routers {
    let management = routes().into_iter().filter(|route| matches!(route.access, Access::SignIn | Access::Session));
    let bodies = BodyBudget::new(parts.settings.bodies_bytes_max, parts.settings.key_bodies_bytes_max);
    let shared = Shared {
        started_at: parts.keys.now(),
        parts,
        write_check: api::health::WriteCheck::default(),
        images: api::input_images::ImageDecoder::default(),
        bodies: Arc::new(bodies),
        document: openapi_json().into(),
        management_paths: management.map(|route| route.path).collect(),
    };
    let state = HttpState(Arc::new(shared));
    let settings = &state.settings;
    let has_tls = settings.has_tls;
    let clients = Door { has_tls, hosts: &settings.hosts };
    let metrics = Door { has_tls: false, hosts: &settings.metrics_hosts };
    let metrics = with_layers(routes_of(is_of_metrics), &state, metrics);
    if !settings.has_own_management {
        let clients = with_layers(routes_of(|route| route.access != Access::Metrics), &state, clients);
        return Routers { clients, management: None, metrics };
    }
    let management = Door { has_tls, hosts: &settings.management_hosts };
    Routers {
        clients: with_layers(routes_of(is_of_clients), &state, clients),
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

/// What is true of the address where a router is served.
#[derive(Clone, Copy)]
struct Door<'a> {
    has_tls: bool,
    hosts: &'a Hosts,
}

fn routes_of(is_wanted: fn(&Route) -> bool) -> Router<HttpState> {
    let wanted = table().into_iter().filter(|(route, ..)| is_wanted(route));
    wanted.fold(Router::new(), |router, (route, handler, _)| router.route(route.path, handler))
}

fn with_layers(router: Router<HttpState>, state: &HttpState, door: Door<'_>) -> Router {
    let header = SetResponseHeaderLayer::<HeaderValue>::overriding;
    let transport = door.has_tls.then(|| HeaderValue::from_static(TRANSPORT_SECURITY));
    let shared = state.settings.sharing.shared();
    // Outermost last: the request id is there before anything is logged, and whatever panics is still answered.
    router
        .fallback(base_url::nothing_here)
        .method_not_allowed_fallback(|| async { ApiError::new(ErrorCode::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(state.settings.body_bytes_max))
        .layer(from_fn_with_state(state.clone(), layer::management::guard))
        .layer(from_fn_with_state(state.clone(), layer::deadline::limit))
        .layer(CatchPanicLayer::custom(layer::panic::answer))
        .layer(option_layer(shared.map(|shared| from_fn_with_state(shared, layer::cors::share))))
        .layer(from_fn_with_state(door.hosts.clone(), layer::host::check))
        .layer(from_fn(layer::spare::hold))
        .layer(from_fn(layer::access_log::record))
        .layer(from_fn(layer::request_id::attach))
        .layer(from_fn_with_state(state.settings.trusted_proxies.clone(), layer::client_address::replace))
        .layer(header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .layer(option_layer(transport.map(|value| header(STRICT_TRANSPORT_SECURITY, value))))
        .with_state(state.clone())
}
