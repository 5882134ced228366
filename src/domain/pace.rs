//! Time for retention: the machine's clock, but no faster than time passes.
//!
//! A clock that is suddenly far ahead is wrong (a bad battery, a bad time server), or the machine slept. Time shows
//! which. Until then retention goes by what the clock would be without the leap.
//!
//! Records dated while the clock was ahead lie in the future once it is corrected, and would be kept until the clock
//! gets there. When the clock has run evenly for long enough, such dates are known to be wrong.

use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

/// A larger jump means that the clock was set; a smaller one is a correction.
const LEAP_MIN: Duration = Duration::minutes(5);
/// A clock that has run evenly for this long is trusted.
const BELIEVED_AFTER: Duration = Duration::HOUR;

/// The clock of retention.
#[derive(Debug)]
pub struct Pace(Mutex<Standing>);

#[derive(Debug)]
struct Standing {
    now: OffsetDateTime,
    /// The machine's clock at the last look.
    clock: OffsetDateTime,
    /// The process's uptime then.
    uptime: Duration,
    /// Since when the clock has run evenly, by uptime.
    even_since: Duration,
    /// Since when the clock has been ahead, by uptime.
    ahead_since: Option<Duration>,
}

/// One reading of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Ages are measured from this moment.
    pub now: OffsetDateTime,
    /// Later dates come from a wrong clock. `None` while the present clock may be the wrong one.
    pub future_begins: Option<OffsetDateTime>,
    /// The clock has leapt ahead since the last look, and is not trusted yet.
    pub has_leapt: bool,
}

impl Pace {
    /// Starts at `last`, the last known moment, when the machine's clock says `clock` and the process's uptime is
    /// `uptime` ([`crate::domain::clock::Clock::uptime`]).
    #[must_use]
    pub fn new(last: OffsetDateTime, clock: OffsetDateTime, uptime: Duration) -> Self {
        let now = last.min(clock);
        Self(Mutex::new(Standing { now, clock, uptime, even_since: uptime, ahead_since: None }))
    }

    /// The moment to use, when the clock says `clock` and the uptime is `uptime`.
    pub fn look(&self, clock: OffsetDateTime, uptime: Duration) -> Moment {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two concurrent callers may come here in either order.
        let uptime = uptime.max(standing.uptime);
        let passed = uptime - standing.uptime;
        if (clock - (standing.clock + passed)).abs() > LEAP_MIN {
            standing.even_since = uptime;
        }
        let expected = standing.now + passed;
        let is_ahead = clock > expected + LEAP_MIN;
        let has_leapt = is_ahead && standing.ahead_since.is_none();
        if has_leapt {
            standing.ahead_since = Some(uptime);
        }
        let is_believed = standing.ahead_since.is_some_and(|since| uptime - since >= BELIEVED_AFTER);
        if !is_ahead || is_believed {
            standing.ahead_since = None;
            standing.now = clock;
        } else {
            standing.now = expected;
        }
        (standing.clock, standing.uptime) = (clock, uptime);
        let is_even = uptime - standing.even_since >= BELIEVED_AFTER;
        Moment { now: standing.now, future_begins: is_even.then_some(clock + LEAP_MIN), has_leapt }
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
    fn passing_time_and_corrections_of_the_clock_are_followed() {
        let pace = Pace::new(START, START, HOUR);
        let now = |clock: OffsetDateTime, uptime: Duration| pace.look(clock, uptime).now;
        assert_eq!(now(START + 48 * HOUR, HOUR + 48 * HOUR), START + 48 * HOUR);
        assert_eq!(now(START + 49 * HOUR + MINUTE, HOUR + 49 * HOUR), START + 49 * HOUR + MINUTE);
        assert_eq!(now(START + 30 * HOUR, HOUR + 50 * HOUR), START + 30 * HOUR, "set back");
        assert_eq!(now(START + 31 * HOUR, HOUR + 51 * HOUR), START + 31 * HOUR);
    }

    #[test]
    fn a_leap_is_trusted_only_after_an_hour() {
        let pace = Pace::new(START, START, HOUR);
        let at = |passed: Duration, clock: OffsetDateTime| pace.look(clock, HOUR + passed).now;
        assert_eq!(at(MINUTE, START + MINUTE + YEAR), START + MINUTE);
        assert_eq!(at(2 * MINUTE, START + 2 * MINUTE), START + 2 * MINUTE, "it was wrong");
        assert_eq!(at(3 * MINUTE, START + YEAR), START + 3 * MINUTE, "again, and the hour starts over");
        assert_eq!(at(62 * MINUTE, START + YEAR + 59 * MINUTE), START + 62 * MINUTE);
        assert_eq!(at(63 * MINUTE, START + YEAR + HOUR), START + YEAR + HOUR);
        assert_eq!(at(64 * MINUTE, START + YEAR + 61 * MINUTE), START + YEAR + 61 * MINUTE);
    }

    #[test]
    fn future_dates_are_known_once_the_clock_has_run_evenly_for_an_hour() {
        let pace = Pace::new(START, START, HOUR);
        let at = |passed: Duration, clock: OffsetDateTime| pace.look(clock, HOUR + passed).future_begins;
        assert_eq!(at(59 * MINUTE, START + 59 * MINUTE), None);
        assert_eq!(at(HOUR, START + HOUR), Some(START + HOUR + LEAP_MIN));
        for step in [YEAR, -YEAR] {
            assert_eq!(at(2 * HOUR, START + 2 * HOUR + step), None, "it was set");
        }
        assert_eq!(at(2 * HOUR, START + 2 * HOUR), None, "and set again");
        assert_eq!(at(3 * HOUR - MINUTE, START + 3 * HOUR - MINUTE), None);
        assert_eq!(at(3 * HOUR, START + 3 * HOUR), Some(START + 3 * HOUR + LEAP_MIN));
    }
}
