//! Tokens of the cluster: kept out of logs, and read no further than needed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// A bearer token. Cannot be copied, serialised or printed by accident, and is wiped from memory when dropped.
pub struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The token itself: for the one answer that hands it over.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the token says of itself. Nobody has checked it: it comes from the cluster or from a file of ours, and nothing
    /// is allowed because of it.
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

/// With less than that left, a token is renewed however young it is: it may have been made by hand, for a start.
const RENEWAL_SECONDS_MIN: i64 = 15 * 60;

/// What stands in a token of a service account (RFC 7519).
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// Its id, by which the cluster's audit log names it. Kubernetes before 1.29 gives none.
    pub(super) jti: Option<String>,
    /// Whose it is: `system:serviceaccount:NAMESPACE:NAME`.
    pub(super) sub: String,
    iat: i64,
    exp: i64,
}

impl Claims {
    /// Whether more than half of its life is over, or little is left of it.
    pub(super) fn is_due(&self, now: OffsetDateTime) -> bool {
        let now = now.unix_timestamp();
        now >= self.iat.midpoint(self.exp) || self.exp - now < RENEWAL_SECONDS_MIN
    }

    /// How long after it was made it is due.
    pub(super) fn due_after(&self) -> Duration {
        let life = self.exp.saturating_sub(self.iat);
        Duration::seconds((life / 2).min(life - RENEWAL_SECONDS_MIN).max(0))
    }

    /// When it was made, by the clock of who made it.
    pub(super) fn made_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.iat).ok()
    }

    /// When it ceases to work.
    pub(super) fn ends_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.exp).ok()
    }
}

/// A token that the cluster has just made.
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
    fn a_token_tells_its_id_and_its_life() {
        let claims = token(r#"{"jti":"an-id","sub":"system:serviceaccount:fluxserve:worker","iat":100,"exp":200}"#);
        let claims = claims.claims().expect("claims");
        assert_eq!(claims.jti.as_deref(), Some("an-id"));
        let at = |second| OffsetDateTime::from_unix_timestamp(second).expect("a moment");
        assert_eq!((claims.made_at(), claims.ends_at()), (Some(at(100)), Some(at(200))));
        assert!(claims.is_due(at(100)), "little is left of it from the start");
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
