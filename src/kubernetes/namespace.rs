//! Namespaces that keys can be let into.

use time::OffsetDateTime;

use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;

/// What the cluster lacks for a namespace to be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The account that stands for it.
    ServiceAccount,
    /// The account's rights in it. Whether they are there can be told only where the account is.
    RoleBinding,
}

impl Missing {
    /// Everything that can be missing.
    pub const ALL: [Self; 2] = [Self::ServiceAccount, Self::RoleBinding];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "service_account",
            Self::RoleBinding => "role_binding",
        }
    }
}

/// A namespace that no key is let into, and why. The text is for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReservedNamespace {
    /// Who gets in there gets everybody's accounts.
    #[error(
        "must not be `{0}`, the worker's own namespace: who is let in there can act as the worker and as every other key's \
         account"
    )]
    Holder(NamespaceName),
    /// Kubernetes keeps `kube-` for itself.
    #[error(
        "must not be `{0}`: names that begin with `kube-` are the cluster's own, and who is let in there has the cluster"
    )]
    System(NamespaceName),
}

/// How a namespace stands in the cluster, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether a token for it can be had and is worth something there.
    pub is_open: bool,
    /// What the cluster lacks.
    pub missing: Vec<Missing>,
    /// Why it could not be told, or not be mended, or what is to be seen to though it is open. For the administrator.
    pub problem: Option<String>,
}

/// A namespace that keys can be let into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// What scopes name it by.
    pub id: NamespaceId,
    /// What the cluster names it by.
    pub name: NamespaceName,
    /// When it was entered here.
    pub created_at: OffsetDateTime,
    /// What the last look found.
    pub standing: Standing,
    /// When that was.
    pub checked_at: Option<OffsetDateTime>,
    /// Which object of the cluster it was when the worker opened it by itself. One of the same name that was made anew is
    /// another, and its makers have let nobody in.
    pub cluster_uid: Option<String>,
}
