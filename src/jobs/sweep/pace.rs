//! The moment that forgetting goes by: the machine's clock, but no faster than time passes.
//!
//! A clock that is suddenly far ahead is wrong (a bad battery, a bad time server), or the machine slept. Which of the two
//! shows with time. Until then jobs are forgotten as if the clock had gone on as before.

use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

/// Further ahead than this the clock has leapt. Less is a correction.
const LEAP_MIN: Duration = Duration::minutes(5);
/// A clock that has stood ahead for this long is believed.
const BELIEVED_AFTER: Duration = Duration::hours(1);

/// Where forgetting stands.
#[derive(Debug)]
pub(in crate::jobs) struct Pace(Mutex<Standing>);

#[derive(Debug)]
struct Standing {
    now: OffsetDateTime,
    /// The process's time at `now`.
    uptime: Duration,
    /// Since when the clock has been ahead, by the process's time.
    ahead_since: Option<Duration>,
}

impl Pace {
    /// Begins at `last`, the last moment that is known to have been, when the process's time is `uptime`.
    pub(in crate::jobs) fn new(last: OffsetDateTime, uptime: Duration) -> Self {
        Self(Mutex::new(Standing { now: last, uptime, ahead_since: None }))
    }

    /// The moment to go by, when the clock says `clock` and the process's time is `uptime`.
    pub(in crate::jobs) fn now(&self, clock: OffsetDateTime, uptime: Duration) -> OffsetDateTime {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = standing.now + (uptime - standing.uptime);
        let is_ahead = clock > expected + LEAP_MIN;
        if is_ahead && standing.ahead_since.is_none() {
            tracing::warn!(%clock, %expected, "the clock has leapt ahead; what its time is over by that stays for an hour more");
            standing.ahead_since = Some(uptime);
        }
        let is_believed = standing.ahead_since.is_some_and(|since| uptime - since >= BELIEVED_AFTER);
        if !is_ahead || is_believed {
            standing.ahead_since = None;
            standing.now = clock;
        } else {
            standing.now = expected;
        }
        standing.uptime = uptime;
        standing.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const MINUTE: Duration = Duration::MINUTE;
    const HOUR: Duration = Duration::HOUR;
    const YEAR: Duration = Duration::days(365);

    #[test]
    fn time_that_passes_is_followed_and_so_is_a_clock_that_is_put_right() {
        let pace = Pace::new(START, HOUR);
        assert_eq!(pace.now(START + 48 * HOUR, HOUR + 48 * HOUR), START + 48 * HOUR);
        assert_eq!(pace.now(START + 49 * HOUR + MINUTE, HOUR + 49 * HOUR), START + 49 * HOUR + MINUTE);
        assert_eq!(pace.now(START + 30 * HOUR, HOUR + 50 * HOUR), START + 30 * HOUR, "set back");
        assert_eq!(pace.now(START + 31 * HOUR, HOUR + 51 * HOUR), START + 31 * HOUR);
    }

    #[test]
    fn a_leap_is_believed_only_once_it_has_stood_for_an_hour() {
        let pace = Pace::new(START, HOUR);
        let at = |passed: Duration, clock: OffsetDateTime| pace.now(clock, HOUR + passed);
        assert_eq!(at(MINUTE, START + MINUTE + YEAR), START + MINUTE);
        assert_eq!(at(2 * MINUTE, START + 2 * MINUTE), START + 2 * MINUTE, "it was wrong");
        assert_eq!(at(3 * MINUTE, START + YEAR), START + 3 * MINUTE, "again, and the hour begins anew");
        assert_eq!(at(62 * MINUTE, START + YEAR + 59 * MINUTE), START + 62 * MINUTE);
        assert_eq!(at(63 * MINUTE, START + YEAR + HOUR), START + YEAR + HOUR);
        assert_eq!(at(64 * MINUTE, START + YEAR + 61 * MINUTE), START + YEAR + 61 * MINUTE);
    }
}
