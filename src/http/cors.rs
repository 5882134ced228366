//! CORS: which pages of other sites may use the API from a browser. Only routes with a key, or without authentication,
//! are shared: a page sends its key explicitly, while the browser would send a session's cookie automatically.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// How long a browser caches a preflight answer.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Response headers that a page may read beyond the safelisted ones.
const EXPOSED: [HeaderName; 10] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-job-id"),
    HeaderName::from_static("x-seed"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    LOCATION,
    RETRY_AFTER,
];

/// The origins of the allowed pages, such as `https://images.example.org`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Only pages of this worker.
    #[default]
    None,
    /// All pages.
    Any,
    /// Pages of these origins.
    With(Vec<String>),
}

/// The shared paths and the layer that shares them.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) paths: HashSet<&'static str>,
    pub(super) layer: CorsLayer,
}

impl Sharing {
    /// Shares the routes with these paths; `None` if no page of another site may use them.
    pub(super) fn shared(&self, paths: HashSet<&'static str>) -> Option<Shared> {
        let origins = match self {
            Self::None => return None,
            Self::Any => AllowOrigin::any(),
            // An origin that is not a valid header value never comes from a browser.
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
        Some(Shared { paths, layer })
    }
}
