//! Namespaces that keys can be granted.

use time::OffsetDateTime;

use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;

/// Maximum namespaces of one worker.
pub const NAMESPACES_MAX: u32 = 1000;

/// An object that the cluster lacks for a namespace to be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Its service account.
    ServiceAccount,
    /// The account's rights in it, known only if the account exists.
    RoleBinding,
}

impl Missing {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::ServiceAccount, Self::RoleBinding];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "service_account",
            Self::RoleBinding => "role_binding",
        }
    }
}

/// Why a namespace cannot be granted to keys. The text is for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReservedNamespace {
    /// The worker's own, which holds the accounts of all namespaces.
    #[error(
        "must not be `{0}`, the worker's own namespace: a key with access to it could act as the worker and as every other \
         key's account"
    )]
    Holder(NamespaceName),
    /// Kubernetes reserves `kube-`.
    #[error(
        "must not be `{0}`: names that begin with `kube-` belong to the cluster, and a key with access to them would control \
         it"
    )]
    System(NamespaceName),
}

/// Last known status of a namespace in the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether tokens for it can be made and have rights in it.
    pub is_open: bool,
    /// What the cluster lacks.
    pub missing: Vec<Missing>,
    /// Why the check failed, or what the administrator has to fix, even if it is open.
    pub problem: Option<String>,
}

/// A namespace that keys can be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its id, used in scopes.
    pub id: NamespaceId,
    /// Its name in the cluster.
    pub name: NamespaceName,
    /// When it was added here.
    pub created_at: OffsetDateTime,
    /// Result of the last check.
    pub standing: Standing,
    /// Time of the last check.
    pub checked_at: Option<OffsetDateTime>,
    /// Its uid in the cluster when the worker opened it. A namespace recreated under the same name is another one, which
    /// it did not open.
    pub cluster_uid: Option<String>,
}
