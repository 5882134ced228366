//! The worker's URL for clients, if it differs from where it listens.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// An absolute http or https URL without path, user, query, fragment and trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

/// A text that is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a URL of scheme, host and port alone: write it like https://images.example.org")]
pub struct NotAPublicUrl;

impl PublicUrl {
    /// As browsers write it: in lower case, without the default port.
    pub(super) fn origin(&self) -> String {
        let origin = self.0.to_ascii_lowercase();
        let port = if origin.starts_with("https://") { ":443" } else { ":80" };
        origin.strip_suffix(port).map(str::to_owned).unwrap_or(origin)
    }

    /// The name alone, without a port.
    #[must_use]
    pub fn host(&self) -> &str {
        let authority = self.0.split_once("://").map_or("", |(_, authority)| authority);
        // The colons of an IPv6 address are in brackets.
        match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => authority,
        }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicUrl {
    type Err = NotAPublicUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text.strip_suffix('/').unwrap_or(text);
        let authority = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or(NotAPublicUrl)?;
        // The colons of an IPv6 address are in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|number| number > 0)
        };
        if is_host(host) && port.is_none_or(is_port) { Ok(Self(url.to_owned())) } else { Err(NotAPublicUrl) }
    }
}

/// Whether it can be the host of a URL: a name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    host.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_no_port() {
        for (url, host) in [
            ("https://images.example.org", "images.example.org"),
            ("http://10.0.0.7:8080/", "10.0.0.7"),
            ("https://[2001:db8::1]:1", "[2001:db8::1]"),
            ("https://[2001:db8::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(url.parse::<PublicUrl>().expect("a URL").host(), host);
        }
    }

    #[test]
    fn scheme_host_and_port_alone() {
        for good in
            ["https://images.example.org", "http://10.0.0.7:8080", "http://localhost", "https://[2001:db8::1]:1"]
        {
            assert_eq!(good.parse::<PublicUrl>().map(|url| url.to_string()).as_deref(), Ok(good));
        }
        assert_eq!("https://a.b/".parse::<PublicUrl>().map(|url| url.to_string()).as_deref(), Ok("https://a.b"));
        for bad in [
            "",
            "images.example.org",
            "ftp://a",
            "https://",
            "https:///",
            "https://a/b",
            "https://a?b",
            "https://a#b",
            "https://u@a",
            "https://a b",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://a:+1",
            "https://a..b",
            "https://[::g]",
            "https://ä",
        ] {
            assert_eq!(bad.parse::<PublicUrl>(), Err(NotAPublicUrl), "{bad:?}");
        }
    }
}
