//! Which pages of other sites may use the API from a browser. Only routes that go by a key, or by nothing, are shared: a
//! page brings its key along, while a session's cookie would go along by itself.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::{Access, routes};

/// How long a browser remembers that it may.
const REMEMBERED: Duration = Duration::from_mins(10);
/// What a page may read of an answer beside what every page may.
const EXPOSED: [HeaderName; 7] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-job-id"),
    HeaderName::from_static("x-seed"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    LOCATION,
    RETRY_AFTER,
];

/// The pages that may, by the origin that their browser says they have: `https://images.example.org`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Those of this worker alone.
    #[default]
    None,
    /// All.
    Any,
    /// Those of these origins.
    With(Vec<String>),
}

/// What shares the routes that are shared.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) paths: HashSet<&'static str>,
    pub(super) layer: CorsLayer,
}

impl Sharing {
    pub(super) fn shared(&self) -> Option<Shared> {
        let origins = match self {
            Self::None => return None,
            Self::Any => AllowOrigin::any(),
            // What cannot be a header's value is no browser's origin.
            Self::With(origins) => {
                AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
            }
        };
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            .max_age(REMEMBERED);
        let shared = routes().into_iter().filter(|route| is_shared(route.access));
        Some(Shared { paths: shared.map(|route| route.path).collect(), layer })
    }
}

fn is_shared(access: Access) -> bool {
    match access {
        Access::Anyone | Access::Inference | Access::InferenceOrLink | Access::Kubernetes => true,
        Access::Metrics | Access::SignIn | Access::Session | Access::Page => false,
    }
}
