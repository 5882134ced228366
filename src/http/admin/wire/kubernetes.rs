//! The cluster and its namespaces in requests and responses.

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

/// The name of a namespace in the cluster.
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
        ObjectSchema::new("The name of a namespace in the cluster.").required("name", name).into()
    }
}

/// A namespace that keys can have access to.
#[derive(Serialize, ToSchema)]
#[schema(as = Namespace)]
pub(in crate::http) struct NamespaceView {
    #[schema(value_type = String)]
    id: NamespaceId,
    /// Its name in the cluster.
    name: String,
    /// `pending` until the cluster has the `objects`, then `open`.
    state: &'static str,
    /// What the cluster lacks: `service_account`, or `role_binding`, which is known only once the account exists.
    missing: Vec<&'static str>,
    /// A problem that needs attention: why the last check failed, or why users could get beyond the namespace.
    problem: Option<String>,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    checked_at: Option<OffsetDateTime>,
    /// The objects to apply in the cluster, as YAML.
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

/// A kubeconfig. Contains no secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Kubeconfig)]
pub(in crate::http) struct KubeconfigView {
    pub(in crate::http) namespace: String,
    /// A name for the file.
    pub(in crate::http) filename: String,
    /// The file's content, as YAML.
    pub(in crate::http) kubeconfig: String,
}

/// The state of the cluster.
#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(in crate::http) struct ClusterView {
    /// The API server's URL for clients.
    server: String,
    /// The worker's own namespace.
    namespace: String,
    /// Whether the worker opens namespaces itself.
    auto_open: bool,
    /// Whether the API server answers.
    reachable: bool,
    version: Option<String>,
    /// Why it does not answer.
    problem: Option<String>,
    /// Removals that the cluster has not confirmed, at most 100.
    pending_removals: Vec<RemovalView>,
}

/// An object that must be removed from the cluster: usually a Secret that tokens depend on.
#[derive(Serialize, ToSchema)]
#[schema(as = Removal)]
struct RemovalView {
    /// The key of the tokens; `null` for the objects of a namespace.
    #[schema(value_type = Option<String>)]
    key_id: Option<KeyId>,
    key_prefix: Option<String>,
    namespace: String,
    #[serde(with = "rfc3339")]
    since: OffsetDateTime,
    attempts: u32,
    last_error: Option<String>,
    /// When the tokens expire.
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
