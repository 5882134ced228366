//! The names under which clients reach a listener. Protects against DNS rebinding: without this check, another site
//! could point its own name to this machine, and its pages could use this worker as if it were their own.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri};

use super::error::{ApiError, ErrorCode};

/// Health checks use the worker's address, or no name.
pub(super) const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// The names of this worker at one listener. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hosts {
    /// Any name.
    #[default]
    Any,
    /// These, and those of the client's own machine.
    Named(Arc<[String]>),
}

impl Hosts {
    /// These names, without ports, and those of the client's own machine.
    pub fn named(names: impl IntoIterator<Item = String>) -> Self {
        Self::Named(names.into_iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    fn has(&self, authority: &Authority) -> bool {
        let Self::Named(names) = self else { return true };
        let host = authority.host().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        is_own_machine(host) || names.iter().any(|name| name == host)
    }

    /// Refuses a request without exactly one host name, or with one that is not this worker's.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        if HEALTH_PATHS.contains(&uri.path()) {
            return Ok(());
        }
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()).filter(|host| !host.contains('@'));
        let host = host.and_then(|host| host.parse::<Authority>().ok());
        let Some(host) = host.filter(|_| hosts.next().is_none()) else {
            return Err(ApiError::new(ErrorCode::InvalidHost));
        };
        // Requests to proxies have a target with its own name.
        if self.has(&host) && uri.authority().is_none_or(|authority| self.has(authority)) {
            return Ok(());
        }
        let detail = "set the names of this worker in `http.hosts` or `http.public_url`";
        Err(ApiError::new(ErrorCode::MisdirectedRequest).with_detail(detail))
    }
}

/// Whether a name refers to the client's own machine.
fn is_own_machine(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match address {
        Some(address) => address.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse(),
    };
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn code(hosts: &Hosts, target: &str, said: &[&'static str]) -> Option<ErrorCode> {
        let mut headers = HeaderMap::new();
        for host in said {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        hosts.check(&target.parse().expect("a target"), &headers).err().map(|error| error.code())
    }

    #[test]
    fn names_are_known_on_any_port() {
        let hosts = Hosts::named(["Images.example.org".to_owned(), "192.0.2.7".to_owned()]);
        for known in [
            "images.example.org",
            "IMAGES.example.org:8080",
            "images.example.org.",
            "192.0.2.7:80",
            "localhost:8080",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(code(&hosts, "/v1/session", &[known]), None, "{known}");
        }
        for unknown in ["evil.test", "images.example.org.evil.test", "localhost.evil.test", "192.0.2.8", "[::2]"] {
            let refused = code(&hosts, "/v1/session", &[unknown]);
            assert_eq!(refused, Some(ErrorCode::MisdirectedRequest), "{unknown}");
            assert_eq!(code(&Hosts::Any, "/v1/session", &[unknown]), None, "{unknown}");
        }
        let refused = code(&hosts, "http://evil.test/v1/session", &["localhost"]);
        assert_eq!(refused, Some(ErrorCode::MisdirectedRequest));
        assert_eq!(code(&hosts, "http://localhost/v1/session", &["localhost"]), None);
    }

    #[test]
    fn exactly_one_readable_host_is_required() {
        for said in
            [&[][..], &["localhost", "localhost"], &["localhost", "evil.test"], &[""], &["a b"], &["u@localhost"]]
        {
            assert_eq!(code(&Hosts::Any, "/v1/session", said), Some(ErrorCode::InvalidHost), "{said:?}");
            for path in HEALTH_PATHS {
                assert_eq!(code(&Hosts::named([]), path, said), None, "{path} {said:?}");
            }
        }
    }
}
