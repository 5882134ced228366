//! The cookie that holds a session's token.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

use super::settings::HttpSettings;
use crate::auth::{SESSION_LIFETIME, SessionToken};

/// The cookie's name over https: browsers then require it to be `Secure` and of this host only.
const SECURE_NAME: &str = "__Host-fluxserve_session";
pub(super) const PLAIN_NAME: &str = "fluxserve_session";

/// The cookie's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionCookie {
    is_secure: bool,
}

impl SessionCookie {
    pub(super) fn of(settings: &HttpSettings) -> Self {
        let public_url = settings.public_url.as_ref().filter(|_| !settings.has_own_management);
        Self { is_secure: settings.has_tls || public_url.is_some_and(|url| url.starts_with("https://")) }
    }

    fn name(self) -> &'static str {
        if self.is_secure { SECURE_NAME } else { PLAIN_NAME }
    }

    /// The token that a client sent. Two different ones count as none: an attacker may have set one of them.
    pub(super) fn read(self, headers: &HeaderMap) -> Option<&str> {
        let texts = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut tokens = pairs.filter(|(name, _)| *name == self.name()).map(|(_, token)| token);
        let first = tokens.next()?;
        tokens.all(|other| other == first).then_some(first)
    }

    /// The header that gives a client its token.
    pub(super) fn set(self, token: &SessionToken) -> HeaderValue {
        self.header(token.reveal(), SESSION_LIFETIME.whole_seconds())
    }

    /// The header that deletes the cookie.
    pub(super) fn clear(self) -> HeaderValue {
        self.header("", 0)
    }

    fn header(self, token: &str, seconds: i64) -> HeaderValue {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let text = format!("{}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", self.name());
        let mut value = HeaderValue::try_from(text).expect("a token is letters and digits");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SessionCookie = SessionCookie { is_secure: false };
    const SECURE: SessionCookie = SessionCookie { is_secure: true };

    fn read(cookie: SessionCookie, sent: &[&'static str]) -> Option<String> {
        let mut map = HeaderMap::new();
        for text in sent {
            map.append(COOKIE, HeaderValue::from_static(text));
        }
        cookie.read(&map).map(str::to_owned)
    }

    #[test]
    fn https_uses_the_secure_cookie() {
        let of =
            |url: &str| SessionCookie::of(&HttpSettings { public_url: Some(url.into()), ..HttpSettings::default() });
        assert_eq!(of("https://images.example.org"), SECURE);
        assert_eq!(of("http://images.example.org"), PLAIN);
        assert_eq!(SessionCookie::of(&HttpSettings::default()), PLAIN);
        let cleared = SECURE.clear();
        let expected = "__Host-fluxserve_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(cleared.to_str().ok(), Some(expected));
        assert!(!format!("{cleared:?}").contains("Path"), "not for logs");
    }

    #[test]
    fn one_token_is_found_among_other_cookies_and_two_count_as_none() {
        assert_eq!(read(PLAIN, &[]), None);
        assert_eq!(read(PLAIN, &["a=b; fluxserve_session=t; c=d"]).as_deref(), Some("t"));
        assert_eq!(read(PLAIN, &["a=b", "fluxserve_session=t"]).as_deref(), Some("t"));
        assert_eq!(read(PLAIN, &["fluxserve_session=t; fluxserve_session=t"]).as_deref(), Some("t"));
        assert_eq!(read(PLAIN, &["fluxserve_session=t; fluxserve_session=u"]), None);
        assert_eq!(read(SECURE, &["fluxserve_session=t"]), None);
        assert_eq!(read(SECURE, &["__Host-fluxserve_session=t"]).as_deref(), Some("t"));
    }
}
