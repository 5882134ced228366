//! What this module needs to know of keys.

use futures_util::future::BoxFuture;

use crate::domain::ids::{KeyId, NamespaceId};

/// One value of a key, for which tokens are made. After a rotation, the old and the new value are two holders.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The key.
    pub key: KeyId,
    /// The public part of its value.
    pub prefix: String,
}

/// The keys' side: whether a holder has a permission now.
pub trait Rights: Send + Sync {
    /// Whether the key's value works and its scope covers the namespace.
    fn covers<'a>(&'a self, holder: &'a Holder, namespace: NamespaceId) -> BoxFuture<'a, Result<bool, RightsUnknown>>;
}

/// The permission cannot be read now. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell whether a key has a permission: {0}")]
pub struct RightsUnknown(pub String);
