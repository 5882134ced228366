//! The client's address behind proxies. Each proxy appends the address of its peer, so the rightmost entry comes from
//! the nearest proxy, and the left entries may be forged. An entry counts only if a trusted proxy wrote it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::http::header::FORWARDED;
use axum::http::{HeaderMap, HeaderName};

use crate::domain::networks::Networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// An unknown address.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The client of a request from `peer`: the rightmost address that is not a trusted proxy.
pub(super) fn client_of(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contain(peer) {
        return peer;
    }
    let client_in = |hops: Vec<Option<IpAddr>>| (!hops.is_empty()).then(|| rightmost_untrusted(peer, &hops, trusted));
    let client = match (client_in(x_forwarded_for(headers)), client_in(forwarded(headers))) {
        // The proxy's own request, or it does not report its client.
        (None, None) => return peer,
        (Some(client), None) | (None, Some(client)) => client,
        (Some(client), Some(other)) if client == other => client,
        // One of the headers was passed through unchecked, and it is unknown which one.
        (Some(_), Some(_)) => peer,
    };
    // Clients on this machine have privileges, so a header must not claim to be one.
    if client.is_loopback() { UNKNOWN } else { client }
}

fn rightmost_untrusted(peer: IpAddr, hops: &[Option<IpAddr>], trusted: &Networks) -> IpAddr {
    let mut client = peer;
    for hop in hops.iter().rev() {
        // A known proxy sent an unreadable entry: that proxy counts as the client.
        let Some(address) = hop else { break };
        client = *address;
        if !trusted.contain(client) {
            break;
        }
    }
    client
}

fn x_forwarded_for(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let lines = headers.get_all(X_FORWARDED_FOR).iter();
    let mut hops = Vec::new();
    for line in lines {
        match line.to_str() {
            Ok(line) => hops.extend(line.split(',').map(|word| address(word.trim()))),
            Err(_) => hops.push(None),
        }
    }
    hops
}

/// The addresses after `for=`, RFC 7239.
fn forwarded(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    for line in headers.get_all(FORWARDED) {
        let Ok(line) = line.to_str() else {
            hops.push(None);
            continue;
        };
        for pair in split_outside_quotes(line) {
            let Some((name, value)) = pair.split_once('=') else { continue };
            if name.trim().eq_ignore_ascii_case("for") {
                hops.push(address(value.trim().trim_matches('"')));
            }
        }
    }
    hops
}

/// Parts between commas and semicolons; other parameters do not matter here.
fn split_outside_quotes(line: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    line.split(move |character| {
        is_quoted ^= character == '"';
        !is_quoted && [',', ';'].contains(&character)
    })
}

/// An address, with or without a port.
fn address(word: &str) -> Option<IpAddr> {
    let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => word.parse().ok().or_else(|| word.parse::<SocketAddr>().ok().map(|address| address.ip())),
    };
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(peer: &str, headers: &[(HeaderName, &'static str)]) -> String {
        let trusted = Networks::of(&["10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48"].map(str::to_owned));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        client_of(peer.parse().expect("an address"), &map, &trusted.expect("networks")).to_string()
    }

    fn by_list(peer: &str, list: &'static str) -> String {
        client(peer, &[(X_FORWARDED_FOR, list)])
    }

    #[test]
    fn the_rightmost_address_counts_that_is_not_a_trusted_proxy() {
        assert_eq!(by_list("10.0.0.1", "192.0.2.1"), "192.0.2.1");
        assert_eq!(by_list("10.0.0.1", "198.51.100.1, 192.0.2.1"), "192.0.2.1", "the left may be forged");
        assert_eq!(by_list("10.0.0.1", "198.51.100.1,192.0.2.1 , 10.0.0.2"), "192.0.2.1");
        assert_eq!(by_list("::ffff:10.0.0.1", "192.0.2.1:4711"), "192.0.2.1");
        assert_eq!(by_list("2001:db8:1::1", "2001:db8:2::1"), "2001:db8:2::1");
        assert_eq!(by_list("10.0.0.1", "[2001:db8:2::1]:4711"), "2001:db8:2::1");
        assert_eq!(by_list("10.0.0.1", "10.0.0.3, 10.0.0.2"), "10.0.0.3", "a client inside the network");
        let lines = [(X_FORWARDED_FOR, "198.51.100.1"), (X_FORWARDED_FOR, "192.0.2.1")];
        assert_eq!(client("10.0.0.1", &lines), "192.0.2.1");
    }

    #[test]
    fn untrusted_peers_and_unreadable_entries_are_ignored() {
        assert_eq!(by_list("192.0.2.9", "198.51.100.1"), "192.0.2.9");
        assert_eq!(client("192.0.2.9", &[(FORWARDED, "for=198.51.100.1")]), "192.0.2.9");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        let unheard = [(HeaderName::from_static("x-real-ip"), "192.0.2.1")];
        assert_eq!(client("10.0.0.1", &unheard), "10.0.0.1");
        for unreadable in ["unknown", "", "192.0.2.1, _hidden", "192.0.2.1, 10.0.0"] {
            assert_eq!(by_list("10.0.0.1", unreadable), "10.0.0.1", "{unreadable}");
        }
        assert_eq!(by_list("10.0.0.1", "192.0.2.1, nonsense, 10.0.0.2"), "10.0.0.2");
    }

    #[test]
    fn the_standard_header_counts_the_same() {
        for (said, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"[2001:db8:2::1]:4711\";proto=https", "2001:db8:2::1"),
            ("for=198.51.100.1, proto=http;by=\"a,b;for=1.2.3.4\";for=192.0.2.1;host=x", "192.0.2.1"),
            ("for=192.0.2.1, for=\"10.0.0.2:80\"", "192.0.2.1"),
            ("for=192.0.2.1, for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[(FORWARDED, said)]), expected, "{said}");
        }
        let both = |said| client("10.0.0.1", &[(X_FORWARDED_FOR, "192.0.2.1"), (FORWARDED, said)]);
        assert_eq!(both("for=192.0.2.1"), "192.0.2.1");
        assert_eq!(both("proto=https"), "192.0.2.1");
        assert_eq!(both("for=198.51.100.1"), "10.0.0.1", "they disagree");
    }

    #[test]
    fn no_header_can_claim_to_be_this_machine() {
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1", "really this machine");
        for said in ["127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1", "nonsense", "192.0.2.1, 127.0.0.1, nonsense"]
        {
            assert_eq!(by_list("127.0.0.1", said), "0.0.0.0", "{said}");
        }
        assert_eq!(by_list("10.0.0.1", "127.0.0.1"), "0.0.0.0");
        let disagree = [(X_FORWARDED_FOR, "192.0.2.1"), (FORWARDED, "for=192.0.2.2")];
        assert_eq!(client("127.0.0.1", &disagree), "0.0.0.0");
    }
}
