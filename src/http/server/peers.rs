//! Counts the connections of each peer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::networks::Networks;

/// Connections by peer. Contains only peers with connections, so it is never larger than their number.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_peer_max: usize,
    /// Trusted proxies, which are not limited.
    proxies: Networks,
}

/// Permit for one connection of a peer, until it is dropped.
#[derive(Debug)]
pub(super) struct PeerPermit(Option<(Peers, IpAddr)>);

impl Peers {
    pub(super) fn new(per_peer_max: usize, proxies: Networks) -> Self {
        Self { counts: Arc::default(), per_peer_max, proxies }
    }

    /// Permits one more connection of this peer; `None` if it has reached the limit.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<PeerPermit> {
        let is_exempt = self.proxies.contain(peer);
        let peer = network(peer);
        if is_exempt || peer.is_loopback() {
            return Some(PeerPermit(None));
        }
        let mut counts = self.counts();
        let count = counts.entry(peer).or_default();
        if *count >= self.per_peer_max {
            return None;
        }
        *count += 1;
        Some(PeerPermit(Some((self.clone(), peer))))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let Some((peers, peer)) = self.0.take() else { return };
        let mut counts = peers.counts();
        if let Some(count) = counts.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&peer);
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, or the first 64 bits of an IPv6 address, which a subscriber cannot choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_peer_has_a_limit_that_closed_connections_free() {
        let peers = Peers::new(2, Networks::default());
        let (first, second) = (peers.enter(address("192.0.2.1")), peers.enter(address("::ffff:192.0.2.1")));
        assert!(first.is_some() && second.is_some());
        assert!(peers.enter(address("192.0.2.1")).is_none(), "both forms of the address are one peer");
        assert!(peers.enter(address("192.0.2.2")).is_some());
        drop(first);
        assert!(peers.enter(address("192.0.2.1")).is_some());
        drop(second);
        assert!(peers.counts().is_empty(), "peers without connections are removed");
    }

    #[test]
    fn one_ipv6_subscriber_is_one_peer_and_this_machine_and_trusted_proxies_are_exempt() {
        let peers = Peers::new(1, Networks::of(&["2001:db8:9::/48".to_owned()]).expect("a network"));
        let _held = peers.enter(address("2001:db8:0:1::1")).expect("the first");
        assert!(peers.enter(address("2001:db8:0:1:ffff::2")).is_none());
        assert!(peers.enter(address("2001:db8:0:2::1")).is_some());
        for local in ["127.0.0.1", "::1", "2001:db8:9::1"] {
            let held = [peers.enter(address(local)), peers.enter(address(local))];
            assert!(held.iter().all(Option::is_some), "{local}");
        }
    }
}
