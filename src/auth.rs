//! API keys: their format, hashing, storage, and the check of a caller. Knows nothing of inference, Kubernetes or HTTP.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::domain::ids::KeyId;
use crate::domain::scope::Scope;

/// A caller whose key was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key's row.
    pub key_id: KeyId,
    /// What the key may do.
    pub scope: Scope,
}

/// Why a caller was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The key is no key of ours, or no longer.
    #[error("the key was refused")]
    Refused,
    /// Too many refused keys from this address.
    #[error("too many refused keys from this address")]
    Throttled {
        /// When to come back.
        retry_after_seconds: u64,
    },
    /// The key could not be checked.
    #[error("keys cannot be checked")]
    Unavailable(#[from] KeyFailure),
}

/// Something inside failed.
#[derive(Debug, thiserror::Error)]
#[error("told to fail")]
pub struct KeyFailure;

/// Checks keys.
#[derive(Debug, Clone, Default)]
pub struct Authenticator {
    keys: HashMap<String, Principal>,
}

impl Authenticator {
    /// An authenticator that knows these keys.
    pub fn with_keys(keys: HashMap<String, Principal>) -> Self {
        Self { keys }
    }

    /// Who presents this key.
    ///
    /// # Errors
    /// When the key is not accepted.
    #[expect(clippy::unused_async, reason = "the signature of the real one")]
    pub async fn authenticate(&self, presented: &str, _client: IpAddr) -> Result<Principal, AuthError> {
        match presented {
            "throttle-me" => Err(AuthError::Throttled { retry_after_seconds: 7 }),
            "break-me" => Err(AuthError::Unavailable(KeyFailure)),
            other => self.keys.get(other).cloned().ok_or(AuthError::Refused),
        }
    }
}
