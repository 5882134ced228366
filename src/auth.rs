//! API keys: their format, hashing, storage, and the check of a caller. Knows nothing of inference, Kubernetes or HTTP.
//!
//! [`KeyService`] makes and revokes keys, [`Authenticator`] tells whose key a caller has presented.

mod authenticator;
mod cache;
mod hash;
mod key;
mod lane;
mod last_used;
mod recent;
mod service;
mod store;
mod throttle;

pub use authenticator::{AuthError, Authenticator, Principal};
pub use hash::HashError;
pub use key::{KEY_CHARS, KEY_PREFIX, MalformedKey, NoRandomness, PlainKey, PublicId};
pub use service::{CreatedKey, KEYS_PER_PAGE_MAX, KeyError, KeyRecord, KeyService, KeyState, NAME_CHARS_MAX, NewKey};

use crate::store::StoreError;

/// Something inside failed; neither the key nor its owner is at fault. Not for clients' eyes.
#[derive(Debug, thiserror::Error)]
pub enum KeyFailure {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key could not be hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// Somebody else has written into the table.
    #[error("the row of key {key_id} cannot be read: column {column}")]
    CorruptRow {
        /// The row's id as it stands there.
        key_id: String,
        /// The column that makes no sense.
        column: &'static str,
    },
}
