//! What the table of routes says of a route: its method, its path, and who may use it.

/// Beginning of the paths of AUTOMATIC1111's API.
const SDAPI: &str = "/sdapi/";

/// Whether a path belongs to AUTOMATIC1111's API, whether this worker has it or not.
pub(super) fn is_of_sdapi(path: &str) -> bool {
    path.starts_with(SDAPI)
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Anyone,
    /// A key whose scope allows inference.
    Inference,
    /// A key whose scope allows the namespace in the path.
    Kubernetes,
    /// A key whose scope allows inference, or a signed link.
    InferenceOrLink,
    /// Everyone at the metrics address; elsewhere the route does not exist.
    Metrics,
    /// Sign-in with the administrator password. Without a password the route does not exist.
    SignIn,
    /// A signed-in session. Without a password the route does not exist.
    Session,
    /// Everyone; served with the management routes.
    Page,
}

impl Access {
    /// Whether the route is for the administrator.
    pub(super) fn is_management(self) -> bool {
        matches!(self, Self::SignIn | Self::Session | Self::Page)
    }

    /// Whether pages of other sites may use the route, if they are allowed to use the API at all.
    pub(super) fn is_shared(self) -> bool {
        match self {
            Self::Anyone | Self::Inference | Self::InferenceOrLink | Self::Kubernetes => true,
            Self::Metrics | Self::SignIn | Self::Session | Self::Page => false,
        }
    }
}

/// A row of the table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method in capitals.
    pub method: &'static str,
    /// The path; names in braces stand for one segment each, a name with a star for the rest.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
}

impl Route {
    /// The path for the OpenAPI document, which has no stars.
    pub fn documented_path(&self) -> String {
        self.path.replace("{*", "{")
    }
}
