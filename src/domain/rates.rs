//! Rate limits of keys and projects: requests per minute.
//!
//! A leaky bucket for each: a request fills it by one, it leaks the limit in a minute, and holds as many. So a client
//! can spend its minute at once, and then has to keep the pace.

use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use time::Duration;

use crate::domain::ids::KeyId;
use crate::domain::recent::RecentMap;

/// Buckets remembered, some 100 bytes each; the least recently used are dropped first.
const KEYS_MAX: usize = 10_000;
/// The period of the limit.
const MINUTE: Duration = Duration::MINUTE;

/// The buckets of all keys, or of whatever has one.
#[derive(Debug)]
pub struct Rates<K = KeyId> {
    /// When each bucket will be empty, as [`crate::domain::clock::Clock::uptime`] counts.
    empty_at: Mutex<RecentMap<K, Duration>>,
}

impl<K: Copy + Eq + Hash> Default for Rates<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Eq + Hash> Rates<K> {
    /// Empty buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { empty_at: Mutex::new(RecentMap::new(KEYS_MAX)) }
    }

    /// Counts a request at `now`, in [`crate::domain::clock::Clock::uptime`].
    ///
    /// # Errors
    /// After how many seconds (at least 1) the next one fits.
    pub fn take(&self, key: K, per_minute: u32, now: Duration) -> Result<(), u64> {
        let mut buckets = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let one = MINUTE / per_minute.max(1);
        // After a change of the limit, a bucket must not be fuller than full.
        let empty_at = buckets.get_mut(&key).map_or(now, |empty_at| (*empty_at).clamp(now, now + MINUTE));
        room(empty_at + one, per_minute, now)?;
        buckets.insert(key, empty_at + one);
        Ok(())
    }

    /// Counts `more` requests for one already counted: all of them, or not even that one.
    ///
    /// # Errors
    /// After how many seconds (at least 1) all of them fit. They never do if they are more than `per_minute`.
    pub fn take_more(&self, key: K, per_minute: u32, more: u32, now: Duration) -> Result<(), u64> {
        let mut buckets = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let one = MINUTE / per_minute.max(1);
        let empty_at = buckets.get_mut(&key).map_or(now, |empty_at| (*empty_at).clamp(now, now + MINUTE));
        let outcome = room(empty_at + one * more, per_minute, now);
        buckets.insert(key, if outcome.is_ok() { empty_at + one * more } else { empty_at - one });
        outcome
    }

    /// Takes back requests that were counted and are refused for another reason.
    pub fn give_back(&self, key: K, per_minute: u32, requests: u32) {
        let mut buckets = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let one = MINUTE / per_minute.max(1);
        if let Some(empty_at) = buckets.get_mut(&key) {
            *empty_at -= one * requests;
        }
    }

    /// How many more requests fit at `now`, and in how many seconds (rounded up) the bucket will be empty.
    pub fn left(&self, key: K, per_minute: u32, now: Duration) -> (u32, u64) {
        let mut buckets = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let one = MINUTE / per_minute.max(1);
        let empty_at = buckets.get_mut(&key).map_or(now, |empty_at| (*empty_at).clamp(now, now + MINUTE));
        let filled = empty_at - now;
        // As in `room`: fractions of a request left by rounding do not count.
        let free = MINUTE - filled + Duration::nanoseconds(i64::from(per_minute));
        let left = free.whole_nanoseconds() / one.whole_nanoseconds().max(1);
        let left = u32::try_from(left).unwrap_or(per_minute).min(per_minute);
        (left, (filled.whole_milliseconds() as u64).div_ceil(1000))
    }
}

/// Whether a bucket that is empty at `empty_at` is not too full now; if it is, after how many seconds it will not be.
fn room(empty_at: Duration, per_minute: u32, now: Duration) -> Result<(), u64> {
    let wait = empty_at - (now + MINUTE);
    // Ignores fractions of a request left by rounding.
    if wait > Duration::nanoseconds(i64::from(per_minute)) {
        return Err((wait.whole_milliseconds() as u64).div_ceil(1000).max(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;

    fn taken(rates: &Rates, key: KeyId, per_minute: u32, now: Duration) -> u32 {
        let mut taken = 0;
        while rates.take(key, per_minute, now).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_minute_can_be_spent_at_once_and_then_the_rate_holds() {
        for per_minute in [1, 7, 60, 1000] {
            let rates = Rates::new();
            let (key, other) = (KeyId::generate(), KeyId::generate());
            assert_eq!(taken(&rates, key, per_minute, START), per_minute);
            assert_eq!(rates.take(key, per_minute, START), Err(60_u64.div_ceil(u64::from(per_minute))));
            assert_eq!(taken(&rates, other, per_minute, START), per_minute, "each key has its own");
            let mut later = 0;
            for second in 1..=600 {
                later += taken(&rates, key, per_minute, START + Duration::seconds(second));
            }
            assert_eq!(later, 10 * per_minute, "in ten minutes");
            assert_eq!(taken(&rates, key, per_minute, START + Duration::HOUR), per_minute, "no more accumulates");
        }
    }

    #[test]
    fn waiting_as_told_is_enough() {
        let rates = Rates::new();
        let key = KeyId::generate();
        let mut now = START;
        for _ in 0..100 {
            if let Err(seconds) = rates.take(key, 7, now) {
                now += Duration::seconds(seconds.cast_signed());
                assert_eq!(rates.take(key, 7, now), Ok(()));
            }
        }
    }

    #[test]
    fn several_are_counted_together_or_not_at_all() {
        let rates = Rates::new();
        let key = KeyId::generate();
        let several = |count: u32, now| {
            rates.take(key, 12, now)?;
            rates.take_more(key, 12, count - 1, now)
        };
        assert_eq!(several(10, START), Ok(()));
        let told = several(10, START);
        assert_eq!(told, Err(40), "eight have to leak out, of which each takes five seconds");
        assert_eq!(several(10, START), told, "a refusal counts nothing");
        assert_eq!(several(10, START + Duration::seconds(39)), Err(1));
        assert_eq!(several(10, START + Duration::seconds(40)), Ok(()), "waiting as told is enough");
        assert_eq!(taken(&rates, key, 12, START + Duration::seconds(40)), 0);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let rates = Rates::new();
        let key = KeyId::generate();
        assert_eq!(taken(&rates, key, 3, START), 3);
        rates.give_back(key, 3, 2);
        assert_eq!(taken(&rates, key, 3, START), 2);
        rates.give_back(KeyId::generate(), 3, 1);
        assert_eq!(taken(&rates, key, 3, START), 0);
    }

    #[test]
    fn what_is_left_is_what_can_be_taken() {
        for per_minute in [1, 7, 12, 1000] {
            let (rates, key) = (Rates::new(), KeyId::generate());
            assert_eq!(rates.left(key, per_minute, START), (per_minute, 0));
            for taken in 1..=per_minute {
                assert_eq!(rates.take(key, per_minute, START), Ok(()));
                assert_eq!(rates.left(key, per_minute, START).0, per_minute - taken);
            }
            assert!(rates.left(key, per_minute, START).1.abs_diff(60) <= 1);
        }
        let (rates, key) = (Rates::new(), KeyId::generate());
        assert_eq!(rates.take(key, 12, START), Ok(()));
        assert_eq!(rates.left(key, 12, START), (11, 5));
        assert_eq!(rates.left(key, 12, START + Duration::seconds(5)), (12, 0));
    }

    #[test]
    fn a_new_limit_applies_at_once() {
        let rates = Rates::new();
        let key = KeyId::generate();
        assert_eq!(taken(&rates, key, 10, START), 10);
        assert_eq!(taken(&rates, key, 100, START), 0, "the bucket is full");
        assert_eq!(taken(&rates, key, 100, START + Duration::seconds(6)), 10);
        assert_eq!(rates.take(key, 1, START + Duration::seconds(6)), Err(60));
    }
}
