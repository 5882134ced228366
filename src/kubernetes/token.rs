//! Tokens of the cluster: kept out of logs, and parsed only as far as needed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// Tokens that a key gets per minute. kubectl requests one in each run, and up to ten when its token has just died.
pub const CREDENTIALS_PER_MINUTE: u32 = 60;

/// A bearer token. Cannot be copied, serialized or printed by accident, and is wiped from memory when dropped.
pub struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The token itself, for the one response that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The token's claims, not verified: it comes from the cluster or from the worker's own file, and nothing is permitted
    /// because of them.
    pub(super) fn claims(&self) -> Option<Claims> {
        let payload = self.0.split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// With less than this left, a token is renewed at any age: it may have been made by hand, as a first one.
const RENEWAL_SECONDS_MIN: i64 = 15 * 60;

/// Claims of a service account's token (RFC 7519).
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// Its id in the cluster's audit log. Kubernetes before 1.29 gives none.
    pub(super) jti: Option<String>,
    /// Its account: `system:serviceaccount:NAMESPACE:NAME`.
    pub(super) sub: String,
    iat: i64,
    exp: i64,
}

impl Claims {
    /// Whether more than half of its lifetime is over, or little is left.
    pub(super) fn is_due(&self, now: OffsetDateTime) -> bool {
        let now = now.unix_timestamp();
        now >= self.iat.midpoint(self.exp) || self.exp - now < RENEWAL_SECONDS_MIN
    }

    /// Its age when it is due for renewal.
    pub(super) fn due_after(&self) -> Duration {
        let life = self.exp.saturating_sub(self.iat);
        Duration::seconds((life / 2).min(life - RENEWAL_SECONDS_MIN).max(0))
    }

    /// When it was made, by the API server's clock.
    pub(super) fn made_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.iat).ok()
    }

    /// When it expires.
    pub(super) fn ends_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.exp).ok()
    }
}

/// A new token from the cluster.
#[derive(Debug)]
pub(super) struct MintedToken {
    pub(super) token: Token,
    pub(super) expires_at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> Token {
        Token::new(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn a_token_has_its_id_and_lifetime() {
        let claims = token(r#"{"jti":"an-id","sub":"system:serviceaccount:fluxserve:worker","iat":100,"exp":200}"#);
        let claims = claims.claims().expect("claims");
        assert_eq!(claims.jti.as_deref(), Some("an-id"));
        let at = |second| OffsetDateTime::from_unix_timestamp(second).expect("a moment");
        assert_eq!((claims.made_at(), claims.ends_at()), (Some(at(100)), Some(at(200))));
        assert!(claims.is_due(at(100)), "little is left from the start");
        let week = Claims { exp: 100_000, ..claims };
        assert!(!week.is_due(at(50_049)) && week.is_due(at(50_050)));
        assert!(token(r#"{"sub":"x","iat":1,"exp":2}"#).claims().is_some_and(|claims| claims.jti.is_none()));
        for opaque in ["", "abc", "a.b.c", "a..c"] {
            assert!(Token::new(opaque.to_owned()).claims().is_none(), "{opaque:?}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", Token::new("secret".into())), "Token(…)");
    }
}
