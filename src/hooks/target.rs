//! Which URLs and addresses events may be sent to.

use std::net::IpAddr;

use reqwest::Url;

use super::address::is_public;
use super::{URL_BYTES_MAX, WebhookSettings};
use crate::domain::webhook::AllowedHosts;

/// Why a URL is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// No URL at all.
    #[error("is not a URL of scheme, host and path: write it like https://hooks.example.org/images")]
    Malformed,
    /// Too long.
    #[error("is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    /// Another scheme.
    #[error("must begin with https://")]
    Scheme,
    /// A user or a password is in it.
    #[error("must not contain a user or a password")]
    Credentials,
    /// A fragment, which is never sent.
    #[error("must not contain `#`")]
    Fragment,
    /// Port 0.
    #[error("has no usable port")]
    Port,
    /// An IP address in another form than the usual one.
    #[error("has an IP address in an unusual form: write it like 203.0.113.7 or [2001:db8::7]")]
    AddressForm,
    /// The address is not of the public internet, or not an allowed one.
    #[error("leads to an address that is not allowed here")]
    Forbidden,
    /// Not one of the allowed hosts.
    #[error("has a host that the operator has not allowed")]
    NotListed,
}

/// The operator's rules for receivers.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    allows_http: bool,
    allowed: AllowedHosts,
    only_allowed: bool,
}

impl Rules {
    pub(super) fn of(settings: &WebhookSettings) -> Self {
        Self {
            allows_http: settings.allows_http,
            allowed: settings.allowed_hosts.clone(),
            only_allowed: settings.only_allowed_hosts,
        }
    }

    /// The URL in a text, if events may be sent there as far as the text tells. What a host's name resolves to is checked for
    /// each connection.
    pub(super) fn check(&self, text: &str) -> Result<Url, BadUrl> {
        if text.len() > URL_BYTES_MAX {
            return Err(BadUrl::TooLong);
        }
        // The parser would drop some of these.
        if text.chars().any(|letter| letter.is_whitespace() || letter.is_control() || letter == '\\') {
            return Err(BadUrl::Malformed);
        }
        let url = Url::parse(text).map_err(|_| BadUrl::Malformed)?;
        match url.scheme() {
            "https" => {}
            "http" if self.allows_http => {}
            _ => return Err(BadUrl::Scheme),
        }
        let (_, rest) = text.split_once("://").ok_or(BadUrl::Malformed)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if !url.username().is_empty() || url.password().is_some() || authority.contains('@') {
            return Err(BadUrl::Credentials);
        }
        if url.fragment().is_some() {
            return Err(BadUrl::Fragment);
        }
        if url.port_or_known_default().is_none_or(|port| port == 0) {
            return Err(BadUrl::Port);
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(BadUrl::Malformed)?;
        match address_in(host) {
            Some(address) if address_in(host_of_authority(authority)) == Some(address) => {
                if !self.permits(host, address) {
                    return Err(BadUrl::Forbidden);
                }
            }
            // The parser takes 2130706433, 0x7f.1 and 0177.0.0.1 for an address, too.
            Some(_) => return Err(BadUrl::AddressForm),
            None => self.check_name(host)?,
        }
        Ok(url)
    }

    fn check_name(&self, name: &str) -> Result<(), BadUrl> {
        if self.allowed.has_name(name) {
            return Ok(());
        }
        if self.only_allowed && self.allowed.has_no_networks() {
            return Err(BadUrl::NotListed);
        }
        let bare = name.trim_end_matches('.');
        let is_this_machine =
            bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost");
        // Whatever it resolves to is checked as well; this answers sooner.
        if is_this_machine && self.allowed.has_no_networks() { Err(BadUrl::Forbidden) } else { Ok(()) }
    }

    /// Whether a connection to `address`, which `host` is or resolves to, is allowed.
    pub(super) fn permits(&self, host: &str, address: IpAddr) -> bool {
        let is_listed = self.allowed.has_name(host) || self.allowed.contain(address);
        is_listed || !self.only_allowed && is_public(address)
    }
}

/// The host of a URL, without a port, for the log and for limits by host; empty if there is none.
pub(super) fn host_of(url: &str) -> String {
    Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

fn host_of_authority(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.is_empty() => {
            // The last group of an address in brackets is no port.
            if host.starts_with('[') && !host.ends_with(']') { authority } else { host }
        }
        _ => authority,
    }
}

/// The address that a host is, in brackets if it is IPv6.
fn address_in(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allows_http: bool, allowed: &[&str], only_allowed: bool) -> Rules {
        let allowed = AllowedHosts::of(&allowed.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("a list");
        Rules { allows_http, allowed, only_allowed }
    }

    #[test]
    fn urls_into_the_inside_are_refused_in_every_spelling() {
        let rules = rules(false, &[], false);
        for (text, expected) in [
            ("", BadUrl::Malformed),
            ("hooks.example.org", BadUrl::Malformed),
            ("https:", BadUrl::Malformed),
            ("https://", BadUrl::Malformed),
            ("https:hooks.example.org", BadUrl::Malformed),
            ("https://hooks.example.org/a b", BadUrl::Malformed),
            ("https://hooks.example.org\\@127.0.0.1/", BadUrl::Malformed),
            (" https://hooks.example.org", BadUrl::Malformed),
            ("https://hooks.example.org/\n", BadUrl::Malformed),
            ("https://hooks.example.org:99999/", BadUrl::Malformed),
            ("http://hooks.example.org/", BadUrl::Scheme),
            ("ftp://hooks.example.org/", BadUrl::Scheme),
            ("file:///etc/passwd", BadUrl::Scheme),
            ("gopher://hooks.example.org/", BadUrl::Scheme),
            ("https://user@hooks.example.org/", BadUrl::Credentials),
            ("https://user:word@hooks.example.org/", BadUrl::Credentials),
            ("https://@hooks.example.org/", BadUrl::Credentials),
            ("https://hooks.example.org/#part", BadUrl::Fragment),
            ("https://hooks.example.org:0/", BadUrl::Port),
            ("https://127.0.0.1/", BadUrl::Forbidden),
            ("https://127.0.0.1:8443/", BadUrl::Forbidden),
            ("https://10.0.0.1/", BadUrl::Forbidden),
            ("https://169.254.169.254/latest/meta-data/", BadUrl::Forbidden),
            ("https://[::1]/", BadUrl::Forbidden),
            ("https://[::1]:8443/", BadUrl::Forbidden),
            ("https://[fd00:ec2::254]/", BadUrl::Forbidden),
            ("https://[::ffff:127.0.0.1]/", BadUrl::Forbidden),
            ("https://[::ffff:7f00:1]/", BadUrl::Forbidden),
            ("https://[64:ff9b::7f00:1]/", BadUrl::Forbidden),
            ("https://[2002:7f00:1::]/", BadUrl::Forbidden),
            ("https://localhost/", BadUrl::Forbidden),
            ("https://LOCALHOST./", BadUrl::Forbidden),
            ("https://a.localhost/", BadUrl::Forbidden),
            ("https://2130706433/", BadUrl::AddressForm),
            ("https://0x7f000001/", BadUrl::AddressForm),
            ("https://0x7f.1/", BadUrl::AddressForm),
            ("https://0177.0.0.1/", BadUrl::AddressForm),
            ("https://127.1/", BadUrl::AddressForm),
            ("https://134744072/", BadUrl::AddressForm),
            ("https://\u{ff11}27.0.0.1/", BadUrl::AddressForm),
        ] {
            assert_eq!(rules.check(text).err(), Some(expected), "{text}");
        }
        assert_eq!(rules.check(&format!("https://a.b/{}", "x".repeat(URL_BYTES_MAX))).err(), Some(BadUrl::TooLong));
        for text in [
            "https://hooks.example.org",
            "https://hooks.example.org:8443/images?token=x",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]:8443/",
            "HTTPS://Hooks.example.org/",
            "https://xn--bcher-kva.example/",
            "https://b\u{fc}cher.example/",
        ] {
            assert!(rules.check(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_operator_allows_more_or_less() {
        let more = rules(true, &["hooks.internal", "10.1.0.0/16"], false);
        for text in ["http://hooks.example.org/", "http://hooks.internal/", "https://10.1.2.3/"] {
            assert!(more.check(text).is_ok(), "{text}");
        }
        assert_eq!(more.check("https://10.2.0.1/").err(), Some(BadUrl::Forbidden));
        let address = |text: &str| text.parse().expect("an address");
        assert!(more.permits("hooks.internal", address("127.0.0.1")), "a name is trusted with what it resolves to");
        assert!(more.permits("other.example.org", address("10.1.2.3")) && more.permits("a.b", address("8.8.8.8")));
        assert!(!more.permits("other.example.org", address("10.2.2.3")));
        let less = rules(false, &["hooks.example.org"], true);
        assert!(less.check("https://hooks.example.org/").is_ok());
        assert_eq!(less.check("https://other.example.org/").err(), Some(BadUrl::NotListed));
        assert_eq!(less.check("https://8.8.8.8/").err(), Some(BadUrl::Forbidden));
        assert!(!less.permits("other.example.org", address("8.8.8.8")));
    }

    #[test]
    fn the_host_of_a_url_is_without_its_port() {
        for (url, host) in [
            ("https://A.b:8443/c", "a.b"),
            ("https://[::1]:8443/", "[::1]"),
            ("http://10.0.0.1", "10.0.0.1"),
            ("x", ""),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }
}
