//! Calendar months in UTC, for budgets.

use std::fmt;

use time::{Date, OffsetDateTime};

use crate::domain::usage::{Day, SECONDS_PER_DAY};

/// The Julian day of 1970-01-01.
const EPOCH_JULIAN_DAY: i32 = 2_440_588;
/// For days that no real clock shows.
const LONGEST_DAYS: i32 = 31;

/// A calendar month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month {
    first: Day,
    /// The first day of the next one.
    end: Day,
}

impl Month {
    /// The month of a moment.
    #[must_use]
    pub fn of(moment: OffsetDateTime) -> Self {
        Self::with(Day::of(moment))
    }

    /// The month that a day is in.
    #[must_use]
    pub fn with(day: Day) -> Self {
        let date = Date::from_julian_day(day.number().saturating_add(EPOCH_JULIAN_DAY)).ok();
        let first_date = date.and_then(|date| date.replace_day(1).ok());
        let first = first_date.map_or(day, of_date);
        let next = first_date.and_then(|first| {
            let year = if first.month() == time::Month::December { first.year() + 1 } else { first.year() };
            Date::from_calendar_date(year, first.month().next(), 1).ok()
        });
        let end = next.map_or(Day::from_number(first.number().saturating_add(LONGEST_DAYS)), of_date);
        Self { first, end }
    }

    /// Its first day.
    #[must_use]
    pub fn first(self) -> Day {
        self.first
    }

    /// The first day after it.
    #[must_use]
    pub fn end(self) -> Day {
        self.end
    }

    /// Seconds (at least 1) from `now`, which is in this month, until the next one.
    #[must_use]
    pub fn seconds_left(self, now: OffsetDateTime) -> u64 {
        let end = i64::from(self.end.number()) * SECONDS_PER_DAY;
        (end - now.unix_timestamp()).max(1).unsigned_abs()
    }
}

fn of_date(date: Date) -> Day {
    Day::from_number(date.to_julian_day() - EPOCH_JULIAN_DAY)
}

/// As in `2030-01`.
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = self.first.to_string();
        f.write_str(day.strip_suffix("-01").unwrap_or(&day))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_month_begins_and_ends_at_midnight_utc() {
        for (moment, name, end) in [
            (datetime!(2030-01-31 23:59:59 UTC), "2030-01", "2030-02-01"),
            (datetime!(2030-02-01 0:00 UTC), "2030-02", "2030-03-01"),
            (datetime!(2028-02-29 12:00 UTC), "2028-02", "2028-03-01"),
            (datetime!(2030-12-31 23:00 -2), "2031-01", "2031-02-01"),
            (datetime!(1969-12-31 0:00 UTC), "1969-12", "1970-01-01"),
        ] {
            let month = Month::of(moment);
            assert_eq!((month.to_string().as_str(), month.end().to_string().as_str()), (name, end));
            assert_eq!(Month::with(month.first()), month);
        }
        let now = datetime!(2030-01-31 23:59:50 UTC);
        assert_eq!(Month::of(now).seconds_left(now), 10);
        assert_eq!(Month::of(now).first().to_string(), "2030-01-01");
    }
}
