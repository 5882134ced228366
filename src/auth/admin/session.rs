//! Sessions and their tokens.

use std::fmt;

use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::auth::key::{NoRandomness, random_base62};
use crate::domain::ids::SessionId;

/// Longest time that a session lasts.
pub const SESSION_LIFETIME: Duration = Duration::hours(24);
/// Longest time that a session lasts without use.
pub const SESSION_IDLE_LIFETIME: Duration = Duration::hours(2);
/// Characters of a session's token: 256 random bits.
const TOKEN_CHARS: usize = 43;
/// Context of the hash, so that its digests are of no use elsewhere.
const TOKEN_CONTEXT: &str = "fluxserve 2026 admin session: hash of the token as it is stored";

/// Secret of a session, sent once, in a cookie. Cannot be copied, serialized or printed by accident.
pub struct SessionToken(Zeroizing<String>);

impl SessionToken {
    pub(super) fn generate() -> Result<Self, NoRandomness> {
        random_base62(TOKEN_CHARS).map(Self)
    }

    /// The token itself, for the one response that sends it.
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

/// Stored form of a token.
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

/// A session that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its id in the audit log.
    pub id: SessionId,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it was last used; up to a minute late.
    pub last_used_at: OffsetDateTime,
}

impl Session {
    /// When it ends without further use.
    #[must_use]
    pub fn idle_expires_at(&self) -> OffsetDateTime {
        (self.last_used_at + SESSION_IDLE_LIFETIME).min(self.expires_at())
    }

    /// When it ends regardless of use.
    #[must_use]
    pub fn expires_at(&self) -> OffsetDateTime {
        self.created_at + SESSION_LIFETIME
    }
}

/// A session that was just created: the only time its token is available.
#[derive(Debug)]
pub struct NewSession {
    /// Its secret.
    pub token: SessionToken,
    /// The session.
    pub session: Session,
}
