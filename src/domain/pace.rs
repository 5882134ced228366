//! The moment that forgetting goes by: the machine's clock, but no faster than time passes.
//!
//! A clock that is suddenly far ahead is wrong (a bad battery, a bad time server), or the machine slept. Which of the two
//! shows with time. Until then things are forgotten as if the clock had gone on as before.
//!
//! What was dated while the clock was ahead is of the future once it is put right, and would be kept until the clock is
//! there again. When the clock has gone on evenly for long enough, such dates are known to be wrong.

use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

/// Further off than this the clock was set. Less is a correction.
const LEAP_MIN: Duration = Duration::minutes(5);
/// A clock that has gone on evenly for this long is believed.
const BELIEVED_AFTER: Duration = Duration::HOUR;

/// Where forgetting stands.
#[derive(Debug)]
pub struct Pace(Mutex<Standing>);

#[derive(Debug)]
struct Standing {
    now: OffsetDateTime,
    /// The machine's clock when it was last looked at.
    clock: OffsetDateTime,
    /// The process's time then.
    uptime: Duration,
    /// Since when the clock has gone on evenly, by the process's time.
    even_since: Duration,
    /// Since when the clock has been ahead, by the process's time.
    ahead_since: Option<Duration>,
}

/// What there is to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What is so much older than this has had its time.
    pub now: OffsetDateTime,
    /// What is dated later than this was dated by a wrong clock. `None` while that may just as well be this one.
    pub future_begins: Option<OffsetDateTime>,
    /// The clock has leapt ahead since the last look, and is not believed.
    pub has_leapt: bool,
}

impl Pace {
    /// Begins at `last`, the last moment that is known to have been, when the machine's clock says `clock` and the process's
    /// time is `uptime` ([`crate::domain::clock::Clock::uptime`]).
    #[must_use]
    pub fn new(last: OffsetDateTime, clock: OffsetDateTime, uptime: Duration) -> Self {
        let now = last.min(clock);
        Self(Mutex::new(Standing { now, clock, uptime, even_since: uptime, ahead_since: None }))
    }

    /// The moment to go by, when the clock says `clock` and the process's time is `uptime`.
    pub fn look(&self, clock: OffsetDateTime, uptime: Duration) -> Moment {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two who look at once may come here in either order.
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
    fn time_that_passes_is_followed_and_so_is_a_clock_that_is_put_right() {
        let pace = Pace::new(START, START, HOUR);
        let now = |clock: OffsetDateTime, uptime: Duration| pace.look(clock, uptime).now;
        assert_eq!(now(START + 48 * HOUR, HOUR + 48 * HOUR), START + 48 * HOUR);
        assert_eq!(now(START + 49 * HOUR + MINUTE, HOUR + 49 * HOUR), START + 49 * HOUR + MINUTE);
        assert_eq!(now(START + 30 * HOUR, HOUR + 50 * HOUR), START + 30 * HOUR, "set back");
        assert_eq!(now(START + 31 * HOUR, HOUR + 51 * HOUR), START + 31 * HOUR);
    }

    #[test]
    fn a_leap_is_believed_only_once_it_has_stood_for_an_hour() {
        let pace = Pace::new(START, START, HOUR);
        let at = |passed: Duration, clock: OffsetDateTime| pace.look(clock, HOUR + passed).now;
        assert_eq!(at(MINUTE, START + MINUTE + YEAR), START + MINUTE);
        assert_eq!(at(2 * MINUTE, START + 2 * MINUTE), START + 2 * MINUTE, "it was wrong");
        assert_eq!(at(3 * MINUTE, START + YEAR), START + 3 * MINUTE, "again, and the hour begins anew");
        assert_eq!(at(62 * MINUTE, START + YEAR + 59 * MINUTE), START + 62 * MINUTE);
        assert_eq!(at(63 * MINUTE, START + YEAR + HOUR), START + YEAR + HOUR);
        assert_eq!(at(64 * MINUTE, START + YEAR + 61 * MINUTE), START + YEAR + 61 * MINUTE);
    }

    #[test]
    fn what_is_of_the_future_is_known_once_the_clock_has_gone_on_evenly_for_an_hour() {
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
