//! API keys: their format, hashing, storage, and the check of a caller; the administrator, and the log of what was done.
//! Knows nothing of inference, Kubernetes or HTTP.
//!
//! [`KeyService`] makes, changes and revokes keys, [`Authenticator`] tells whose key a caller has presented,
//! [`AdminService`] who may manage keys and who did.

mod admin;
mod audit;
mod authenticator;
mod cache;
mod hash;
mod key;
mod lane;
mod namespaces;
mod record;
mod rows;
mod service;
mod store;
mod throttle;
mod uses;

pub use admin::{
    AdminService, NewSession, SESSION_IDLE_LIFETIME, SESSION_LIFETIME, SESSIONS_MAX, Session, SessionToken, SignInError,
};
pub use audit::{AUDIT_PER_PAGE_MAX, Actor, AuditAction, AuditEntry, AuditPage, AuditedKey, UnknownAction};
pub use authenticator::{AuthError, Authenticator, Principal};
pub use hash::HashError;
pub use key::{KEY_CHARS, KEY_PREFIX, MalformedKey, NoRandomness, PlainKey, PublicId};
pub use record::{
    Change, CreatedKey, GRACE_SECONDS_MAX, KEYS_PER_PAGE_MAX, KeyEdit, KeyError, KeyPage, KeyQuery, KeyRecord, KeyRef,
    KeyState, LimitChanges, NAME_CHARS_MAX, NewKey, Overlap, UnknownKeyState,
};
pub use service::KeyService;

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
