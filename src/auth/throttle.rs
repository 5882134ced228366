//! Limit of wrong keys, or passwords, per address.
//!
//! No key can be guessed: that would take 2^190 tries. For keys, the limit protects clients with valid keys from the load of
//! wrong ones.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::Duration;

use crate::domain::recent::RecentMap;

/// Addresses remembered, some 100 bytes each, the oldest forgotten first. This does not stop a client with more addresses.
pub(super) const ADDRESSES_MAX: usize = 16_384;

/// How many failures are allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThrottleRule {
    /// Failures an address may have at once.
    pub(super) failures_max: u32,
    /// Time until one more is allowed.
    pub(super) seconds_per_failure: i64,
}

impl ThrottleRule {
    fn one(self) -> Duration {
        Duration::seconds(self.seconds_per_failure)
    }

    fn full(self) -> Duration {
        Duration::seconds(self.seconds_per_failure * i64::from(self.failures_max))
    }
}

/// Failures by address.
#[derive(Debug)]
pub(super) struct Throttle {
    rule: ThrottleRule,
    failures: Mutex<RecentMap<IpAddr, Failures>>,
}

/// A bucket that fills by one with each failure and leaks one every [`ThrottleRule::seconds_per_failure`].
#[derive(Debug, Clone, Copy)]
struct Failures {
    /// When the bucket will be empty, as [`crate::domain::clock::Clock::uptime`] counts.
    forgiven_at: Duration,
}

impl Throttle {
    pub(super) fn new(rule: ThrottleRule) -> Self {
        Self { rule, failures: Mutex::new(RecentMap::new(ADDRESSES_MAX)) }
    }

    /// Seconds (at least 1) until `client` may fail again; `None` when it may now.
    pub(super) fn retry_after_seconds(&self, client: IpAddr, now: Duration) -> Option<u64> {
        self.wait_seconds(&mut self.failures(), client, now)
    }

    /// Counts a failure.
    pub(super) fn record_failure(&self, client: IpAddr, now: Duration) {
        self.record(&mut self.failures(), client, now);
    }

    /// Counts an attempt as a failure if one more is allowed; otherwise returns the seconds until then.
    pub(super) fn try_failure(&self, client: IpAddr, now: Duration) -> Result<(), u64> {
        let mut failures = self.failures();
        if let Some(seconds) = self.wait_seconds(&mut failures, client, now) {
            return Err(seconds);
        }
        self.record(&mut failures, client, now);
        Ok(())
    }

    /// Takes back an attempt that did not fail.
    pub(super) fn forgive(&self, client: IpAddr) {
        if let Some(bucket) = self.failures().get_mut(&network(client)) {
            bucket.forgiven_at -= self.rule.one();
        }
    }

    fn failures(&self) -> MutexGuard<'_, RecentMap<IpAddr, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_seconds(&self, failures: &mut RecentMap<IpAddr, Failures>, client: IpAddr, now: Duration) -> Option<u64> {
        let bucket = failures.get_mut(&network(client))?;
        // One more must fit.
        let free_at = bucket.forgiven_at - self.rule.full() + self.rule.one();
        let wait = free_at - now;
        wait.is_positive().then(|| (wait.whole_milliseconds() as u64).div_ceil(1000).max(1))
    }

    fn record(&self, failures: &mut RecentMap<IpAddr, Failures>, client: IpAddr, now: Duration) {
        let network = network(client);
        match failures.get_mut(&network) {
            Some(bucket) => {
                // The bucket is capped: trying on does not lengthen the wait.
                bucket.forgiven_at = (bucket.forgiven_at.max(now) + self.rule.one()).min(now + self.rule.full());
            }
            None => failures.insert(network, Failures { forgiven_at: now + self.rule.one() }),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.failures.lock().expect("not poisoned").len()
    }
}

/// What counts as one client: an IPv4 address, or the 64 bits of an IPv6 address that a subscriber cannot choose.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const RULE: ThrottleRule = ThrottleRule { failures_max: 20, seconds_per_failure: 3 };
    const ONE: Duration = Duration::seconds(3);
    const START: Duration = Duration::ZERO;
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn an_address_is_throttled_after_its_failures_and_then_forgiven_one_by_one() {
        let throttle = Throttle::new(RULE);
        for _ in 0..RULE.failures_max {
            assert_eq!(throttle.retry_after_seconds(HERE, START), None);
            throttle.record_failure(HERE, START);
        }
        assert_eq!(throttle.retry_after_seconds(HERE, START), Some(RULE.seconds_per_failure as u64));
        assert_eq!(throttle.retry_after_seconds(THERE, START), None);
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE - Duration::milliseconds(1)), Some(1));
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE), None);
        throttle.record_failure(HERE, START + ONE);
        assert_eq!(throttle.retry_after_seconds(HERE, START + ONE), Some(RULE.seconds_per_failure as u64));
    }

    #[test]
    fn trying_on_does_not_lengthen_the_wait() {
        let throttle = Throttle::new(RULE);
        for _ in 0..1000 {
            throttle.record_failure(HERE, START);
        }
        assert_eq!(throttle.retry_after_seconds(HERE, START), Some(RULE.seconds_per_failure as u64));
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
    fn an_attempt_is_counted_until_it_is_forgiven() {
        let throttle = Throttle::new(RULE);
        for _ in 0..RULE.failures_max {
            assert_eq!(throttle.try_failure(HERE, START), Ok(()));
        }
        assert_eq!(throttle.try_failure(HERE, START), Err(RULE.seconds_per_failure as u64));
        throttle.forgive(HERE);
        assert_eq!(throttle.try_failure(HERE, START), Ok(()));
        assert!(throttle.try_failure(HERE, START).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::new(RULE);
        for number in 0..100_000_u32 {
            throttle.record_failure(IpAddr::V4(Ipv4Addr::from_bits(number)), START);
        }
        assert!(throttle.len() <= ADDRESSES_MAX, "{}", throttle.len());
    }
}
