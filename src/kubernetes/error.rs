//! Errors of this module.

use super::cluster::ClusterError;
use super::namespace::{NAMESPACES_MAX, ReservedNamespace};
use super::rights::RightsUnknown;
use super::token::CREDENTIALS_PER_MINUTE;
use crate::domain::namespace::NamespaceName;
use crate::store::StoreError;

/// Result of the statements.
pub(super) type Result<T> = std::result::Result<T, KubernetesError>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// No cluster is configured.
    #[error("no cluster is configured")]
    NotConfigured,
    /// There is no such namespace.
    #[error("there is no such namespace")]
    NamespaceNotFound,
    /// Another namespace has that name.
    #[error("there is already a namespace of that name")]
    NameTaken,
    /// Keys cannot be granted this namespace.
    #[error(transparent)]
    Reserved(ReservedNamespace),
    /// The limit is [`NAMESPACES_MAX`].
    #[error("there are {NAMESPACES_MAX} namespaces already")]
    TooManyNamespaces,
    /// The cluster lacks the objects that open the namespace.
    #[error("the namespace {0} is not open in the cluster yet")]
    Pending(NamespaceName),
    /// The key has reached its tokens per minute.
    #[error("more than {CREDENTIALS_PER_MINUTE} tokens a minute, try again in {retry_after_seconds} s")]
    RateLimited {
        /// When the next one is allowed.
        retry_after_seconds: u64,
    },
    /// The key's permission ended while its token was made.
    #[error("the key's permission has ended meanwhile")]
    RightEnded,
    /// The cluster failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The keys cannot be read.
    #[error(transparent)]
    Rights(#[from] RightsUnknown),
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
    /// A row holds what this program does not write.
    #[error("a row cannot be read: column {column}")]
    CorruptRow {
        /// The invalid column.
        column: &'static str,
    },
}
