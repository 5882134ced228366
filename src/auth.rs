//! API keys: format, hashing, storage and the check of a caller; the administrator's password and sessions, and the audit
//! log. Knows nothing of inference, Kubernetes or HTTP.
//!
//! [`KeyService`] creates, changes and revokes keys, [`Authenticator`] identifies the key that a caller presents,
//! [`AdminService`] signs the administrator in and reads the audit log.

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
pub use store::audit::{audit_in, audit_key_in};

use crate::store::StoreError;

/// Internal failure, not the fault of the key or its owner. Not shown to clients.
#[derive(Debug, thiserror::Error)]
pub enum KeyFailure {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key could not be hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The row holds what this program does not write.
    #[error("the row of key {key_id} cannot be read: column {column}")]
    CorruptRow {
        /// The row's id as stored.
        key_id: String,
        /// The invalid column.
        column: &'static str,
    },
}
