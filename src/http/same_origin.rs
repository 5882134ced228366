//! Detects requests from pages of other sites. Browsers without `SameSite` support send the session's cookie with
//! those, and a sign-in needs no cookie at all.

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether the browser reports that the request comes from a page of another site. Other clients report nothing.
pub(super) fn is_foreign(headers: &HeaderMap, public_url: Option<&str>) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let is_foreign_site = site.is_some_and(|site| ![&b"same-origin"[..], b"none"].contains(&site));
    let mut origins = headers.get_all(ORIGIN).iter();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    is_foreign_site || origins.any(|origin| !origin.to_str().is_ok_and(|origin| is_ours(origin, host, public_url)))
}

/// Compares the origin with the public URL and with the request's host.
fn is_ours(origin: &str, host: Option<&str>, public_url: Option<&str>) -> bool {
    let Some((scheme, authority)) = parts(origin) else { return false };
    let is_host = host.is_some_and(|host| without_default_port(scheme, host).eq_ignore_ascii_case(authority));
    let is_public = public_url.and_then(parts).is_some_and(|(public_scheme, public_authority)| {
        public_scheme == scheme && public_authority.eq_ignore_ascii_case(authority)
    });
    is_host || is_public
}

fn parts(origin: &str) -> Option<(&str, &str)> {
    let (scheme, authority) = origin.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))?;
    Some((scheme, without_default_port(scheme, authority)))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = if scheme == "https" { ":443" } else { ":80" };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(headers: &[(HeaderName, &'static str)], public_url: Option<&str>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        is_foreign(&map, public_url)
    }

    #[test]
    fn other_sites_are_foreign_and_scripts_are_not() {
        let host = (HOST, "worker.test:8080");
        for ours in ["http://worker.test:8080", "https://worker.test:8080", "http://Worker.Test:8080"] {
            assert!(!foreign(&[host.clone(), (ORIGIN, ours)], None), "{ours}");
        }
        for other in ["http://worker.test", "http://evil.test", "null", "", "http://worker.test:8080.evil.test"] {
            assert!(foreign(&[host.clone(), (ORIGIN, other)], None), "{other}");
        }
        let twice = [host.clone(), (ORIGIN, "http://worker.test:8080"), (ORIGIN, "http://evil.test")];
        assert!(foreign(&twice, None));
        assert!(!foreign(std::slice::from_ref(&host), None));
        assert!(foreign(&[(ORIGIN, "http://worker.test")], None), "without a host");
    }

    #[test]
    fn behind_a_proxy_the_public_url_counts_as_well() {
        let public = Some("https://images.example.org:443");
        let host = (HOST, "10.0.0.7");
        assert!(!foreign(&[host.clone(), (ORIGIN, "https://images.example.org")], public));
        assert!(foreign(&[host.clone(), (ORIGIN, "http://images.example.org")], public));
        assert!(!foreign(&[(HOST, "10.0.0.7:80"), (ORIGIN, "http://10.0.0.7")], public));
    }

    #[test]
    fn the_browsers_fetch_metadata_counts() {
        let own = [(HOST, "worker.test"), (ORIGIN, "http://worker.test")];
        for (site, expected) in [("same-origin", false), ("none", false), ("same-site", true), ("cross-site", true)] {
            let headers = [&own[..], &[(SEC_FETCH_SITE, site)]].concat();
            assert_eq!(foreign(&headers, None), expected, "{site}");
        }
    }
}
