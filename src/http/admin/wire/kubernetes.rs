//! The cluster and its namespaces, as they are asked for and as they are shown.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::domain::ids::{KeyId, NamespaceId};
use crate::domain::namespace::{NAMESPACE_NAME_CHARS_MAX, NamespaceName};
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::kubernetes::{ClusterStatus, Namespace, Removal};

/// What the cluster calls a namespace that keys shall be let into.
pub(in crate::http) struct NamespaceBody(pub(in crate::http) NamespaceName);

impl FromFields for NamespaceBody {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name: Result<NamespaceName, _> = fields.required_text("name")?.parse();
        name.inspect_err(|error| fields.refuse("name", error.to_string())).ok().map(Self)
    }
}

impl ToSchema for NamespaceBody {
    fn name() -> std::borrow::Cow<'static, str> {
        "NamespaceName".into()
    }
}

impl PartialSchema for NamespaceBody {
    fn schema() -> RefOr<Schema> {
        let name = text()
            .pattern(Some("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
            .max_length(Some(NAMESPACE_NAME_CHARS_MAX))
            .description(Some("A lowercase DNS label, and not `all`."));
        ObjectSchema::new("What the cluster calls a namespace that keys shall be let into.")
            .required("name", name)
            .into()
    }
}

/// A namespace that keys can be let into.
#[derive(Serialize, ToSchema)]
#[schema(as = Namespace)]
pub(in crate::http) struct NamespaceView {
    #[schema(value_type = String)]
    id: NamespaceId,
    /// What the cluster calls it.
    name: String,
    /// `pending` until the cluster has what opens it, then `open`.
    state: &'static str,
    /// What the cluster lacks: `service_account`, or `role_binding`, which can be told only when the former is there.
    missing: Vec<&'static str>,
    /// What is to be seen to: why the last look told nothing, or why who is let in gets further than into the namespace.
    problem: Option<String>,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    checked_at: Option<OffsetDateTime>,
    /// What has to be applied in the cluster, as YAML.
    objects: String,
}

impl NamespaceView {
    pub(in crate::http) fn of(namespace: Namespace, objects: String) -> Self {
        let standing = namespace.standing;
        Self {
            id: namespace.id,
            name: namespace.name.to_string(),
            state: if standing.is_open { "open" } else { "pending" },
            missing: standing.missing.iter().map(|missing| missing.as_str()).collect(),
            problem: standing.problem,
            created_at: namespace.created_at,
            checked_at: namespace.checked_at,
            objects,
        }
    }
}

/// All namespaces, by name.
#[derive(Serialize, ToSchema)]
#[schema(as = NamespaceList)]
pub(in crate::http) struct NamespaceListView {
    pub(in crate::http) data: Vec<NamespaceView>,
}

/// A file for kubectl. Holds no secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Kubeconfig)]
pub(in crate::http) struct KubeconfigView {
    pub(in crate::http) namespace: String,
    /// What to call it.
    pub(in crate::http) filename: String,
    /// What stands in it, as YAML.
    pub(in crate::http) kubeconfig: String,
}

/// How the cluster stands.
#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(in crate::http) struct ClusterView {
    /// Where clients find the API server.
    server: String,
    /// The namespace that the worker owns there.
    namespace: String,
    /// Whether the worker opens namespaces by itself.
    auto_open: bool,
    /// Whether the API server answers.
    reachable: bool,
    version: Option<String>,
    /// Why it does not.
    problem: Option<String>,
    /// What has to go from the cluster and is not known to be gone: a hundred at most.
    pending_removals: Vec<RemovalView>,
}

/// Something that has to go from the cluster: mostly a Secret, on which tokens hang.
#[derive(Serialize, ToSchema)]
#[schema(as = Removal)]
struct RemovalView {
    /// Whose tokens; `null` for what a namespace was opened with.
    #[schema(value_type = Option<String>)]
    key_id: Option<KeyId>,
    key_prefix: Option<String>,
    namespace: String,
    #[serde(with = "rfc3339")]
    since: OffsetDateTime,
    attempts: u32,
    last_error: Option<String>,
    /// When they end by themselves.
    #[serde(with = "rfc3339::option")]
    tokens_end_at: Option<OffsetDateTime>,
}

impl From<Removal> for RemovalView {
    fn from(removal: Removal) -> Self {
        let (key_id, key_prefix) = removal.holder.map(|holder| (holder.key, holder.prefix)).unzip();
        Self {
            key_id,
            key_prefix,
            namespace: removal.namespace,
            since: removal.since,
            attempts: removal.attempts,
            last_error: removal.last_error,
            tokens_end_at: removal.tokens_end_at,
        }
    }
}

impl From<ClusterStatus> for ClusterView {
    fn from(status: ClusterStatus) -> Self {
        let (version, problem) = match status.version {
            Ok(version) => (Some(version), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            server: status.server,
            namespace: status.holder.to_string(),
            auto_open: status.auto_open,
            reachable: version.is_some(),
            version,
            problem,
            pending_removals: status.removals.into_iter().map(RemovalView::from).collect(),
        }
    }
}
