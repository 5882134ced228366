//! How many wrong keys one address may try, and how many keys are looked up at one time.
//!
//! Nothing here can guess a key: that would take 2^190 tries. The point is that trying must not get in the way of those
//! whose keys are good.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

use crate::auth::recent::RecentMap;

/// Addresses remembered, some 100 bytes each. Older ones are forgotten first; a client with more addresses than this is
/// not held back by an address book.
pub(super) const ADDRESSES_MAX: usize = 16_384;
/// Wrong keys an address may try at once.
pub(super) const FAILURES_MAX: u32 = 20;
/// After how long it may try one more.
pub(super) const SECONDS_PER_FAILURE: i64 = 3;

/// Wrong keys by address.
#[derive(Debug)]
pub(super) struct Throttle {
    failures: Mutex<RecentMap<IpAddr, Failures>>,
}

/// A bucket that fills by one with each failure and leaks one every [`SECONDS_PER_FAILURE`].
#[derive(Debug, Clone, Copy)]
struct Failures {
    /// When the bucket will be empty.
    forgiven_at: OffsetDateTime,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { failures: Mutex::new(RecentMap::new(ADDRESSES_MAX)) }
    }

    /// Seconds (at least 1) until `client` may try a wrong key again; `None` when it may now.
    pub(super) fn retry_after_seconds(&self, client: IpAddr, now: OffsetDateTime) -> Option<u64> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = failures.get_mut(&network(client))?;
        // One more must fit.
        let free_at = bucket.forgiven_at - FULL + ONE;
        let wait = free_at - now;
        wait.is_positive().then(|| (wait.whole_milliseconds() as u64).div_ceil(1000).max(1))
    }

    /// Counts a wrong key.
    pub(super) fn record_failure(&self, client: IpAddr, now: OffsetDateTime) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network(client);
        match failures.get_mut(&network) {
            Some(bucket) => {
                // Full is full: who goes on trying waits no longer than who stops.
                bucket.forgiven_at = (bucket.forgiven_at.max(now) + ONE).min(now + FULL);
            }
            None => failures.insert(network, Failures { forgiven_at: now + ONE }),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.failures.lock().expect("not poisoned").len()
    }
}

const ONE: Duration = Duration::seconds(SECONDS_PER_FAILURE);
const FULL: Duration = Duration::seconds(SECONDS_PER_FAILURE * FAILURES_MAX as i64);

/// What counts as one client: an IPv4 address, or the 64 bits of an IPv6 address that a subscriber cannot choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn an_address_is_held_back_after_its_failures_and_then_forgiven_one_by_one() {
        let throttle = Throttle::new();
        for _ in 0..FAILURES_MAX {
            assert_eq!(throttle.retry_after_seconds(HERE, START), None);
            throttle.record_failure(HERE, START);
        }
        assert_eq!(throttle.retry_after_seconds(HERE, START), Some(SECONDS_PER_FAILURE as u64));
        assert_eq!(throttle.retry_after_seconds(THERE, START), None);
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE - Duration::milliseconds(1)), Some(1));
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE), None);
        throttle.record_failure(HERE, START + ONE);
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE), Some(SECONDS_PER_FAILURE as u64));
    }

    #[test]
    fn trying_on_does_not_lengthen_the_wait() {
        let throttle = Throttle::new();
        for _ in 0..1000 {
            throttle.record_failure(HERE, START);
        }
        assert_eq!(throttle.retry_after_seconds(HERE, START), Some(SECONDS_PER_FAILURE as u64));
    }

    #[test]
    fn one_ipv6_subscriber_is_one_client_and_a_mapped_address_is_the_ipv4_one() {
        let ours: IpAddr = "2001:db8:0:1::1".parse().expect("an address");
        let also_ours: IpAddr = "2001:db8:0:1:ffff::2".parse().expect("an address");
        let theirs: IpAddr = "2001:db8:0:2::1".parse().expect("an address");
        assert_eq!(network(ours), network(also_ours));
        assert_ne!(network(ours), network(theirs));
        assert_eq!(network("::ffff:192.0.2.1".parse().expect("an address")), HERE);
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::new();
        for number in 0..100_000_u32 {
            throttle.record_failure(IpAddr::V4(Ipv4Addr::from_bits(number)), START);
        }
        assert!(throttle.len() <= ADDRESSES_MAX, "{}", throttle.len());
    }
}
