//! Sessions, and what proves them.

use std::fmt;

use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::auth::key::{NoRandomness, random_base62};
use crate::domain::ids::SessionId;

/// How long a session lasts, however much it is used.
pub const SESSION_LIFETIME: Duration = Duration::hours(24);
/// How long a session lasts without being used.
pub const SESSION_IDLE_LIFETIME: Duration = Duration::hours(2);
/// Characters of a session's token: 256 random bits.
const TOKEN_CHARS: usize = 43;
/// Names what the hash is for, so that the same digest is of use nowhere else.
const TOKEN_CONTEXT: &str = "fluxserve 2026 admin session: hash of the token as it is stored";

/// What proves a session: goes into a cookie, once. Cannot be copied, serialised or printed by accident.
pub struct SessionToken(Zeroizing<String>);

impl SessionToken {
    pub(super) fn generate() -> Result<Self, NoRandomness> {
        random_base62(TOKEN_CHARS).map(Self)
    }

    /// The token itself: for the one answer that hands it over.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(…)")
    }
}

/// A token as it is stored.
#[derive(Debug)]
pub(in crate::auth) struct SessionHash([u8; 32]);

impl SessionHash {
    pub(super) fn of(token: &str) -> Self {
        Self(blake3::derive_key(TOKEN_CONTEXT, token.as_bytes()))
    }

    pub(in crate::auth) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A sign-in that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// By which the audit log names it.
    pub id: SessionId,
    /// When somebody signed in.
    pub created_at: OffsetDateTime,
    /// When it was last used; up to a minute late.
    pub last_used_at: OffsetDateTime,
}

impl Session {
    /// When it ends, unless it is used before.
    #[must_use]
    pub fn idle_expires_at(&self) -> OffsetDateTime {
        (self.last_used_at + SESSION_IDLE_LIFETIME).min(self.expires_at())
    }

    /// When it ends, however much it is used.
    #[must_use]
    pub fn expires_at(&self) -> OffsetDateTime {
        self.created_at + SESSION_LIFETIME
    }
}

/// A sign-in that has just been made: the only time its token is at hand.
#[derive(Debug)]
pub struct NewSession {
    /// What proves it from now on.
    pub token: SessionToken,
    /// What is known of it.
    pub session: Session,
}
