//! Usage of a key, by UTC day.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use time::macros::format_description;
use time::{Date, OffsetDateTime};

/// How many days of usage are kept.
pub const USAGE_DAYS_KEPT: u32 = 400;

/// Seconds of a day.
pub(crate) const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// A day in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(i32);

impl Day {
    /// The day of a moment.
    #[must_use]
    pub fn of(moment: OffsetDateTime) -> Self {
        Self(moment.unix_timestamp().div_euclid(SECONDS_PER_DAY) as i32)
    }

    /// The day `days` before this one.
    #[must_use]
    pub fn before(self, days: u32) -> Self {
        Self(self.0.saturating_sub_unsigned(days))
    }

    /// Days since 1970-01-01, as stored in the database.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// The inverse of [`Day::number`].
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// Seconds (at least 1) from `now`, which is in this day, until the next one.
    #[must_use]
    pub fn seconds_left(self, now: OffsetDateTime) -> u64 {
        let end = (i64::from(self.0) + 1) * SECONDS_PER_DAY;
        (end - now.unix_timestamp()).max(1).unsigned_abs()
    }
}

/// A text that is no day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a day like 2030-01-31")]
pub struct InvalidDay;

/// As in `2030-01-31`.
impl FromStr for Day {
    type Err = InvalidDay;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The parser also accepts signs and years of more digits.
        let is_plain = text.len() == 10 && text.as_bytes()[0].is_ascii_digit();
        let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok().filter(|_| is_plain);
        date.map(|date| Self::of(date.midnight().assume_utc())).ok_or(InvalidDay)
    }
}

/// The days from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayRange {
    /// The first.
    pub from: Day,
    /// The last.
    pub to: Day,
}

impl DayRange {
    /// Number of its days; 0 if it ends before it begins.
    #[must_use]
    pub fn days(self) -> u32 {
        u32::try_from(i64::from(self.to.0) - i64::from(self.from.0) + 1).unwrap_or(0)
    }

    /// Its days, the first one first.
    pub fn iter(self) -> impl Iterator<Item = Day> {
        (self.from.0..=self.to.0).map(Day)
    }
}

/// As in `2030-01-31`.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(i64::from(self.0) * SECONDS_PER_DAY) {
            Ok(moment) => moment.date().fmt(f),
            // No real clock shows this.
            Err(_) => write!(f, "day {}", self.0),
        }
    }
}

/// Steps that an image is charged on top of its own each time it is started: about the cost of encoding the prompt and
/// decoding. The same for every model, so that an image's cost is known in advance.
pub const STEPS_BESIDE: u32 = 4;

/// Cost factors of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCost {
    /// The image's pixels.
    pub pixels: u64,
    /// Times the model runs in one denoising step.
    pub passes: u32,
}

impl ImageCost {
    /// Cost of an image that was started `starts` times, with `steps` denoising steps in total.
    #[must_use]
    pub fn pixel_steps(self, starts: u32, steps: u32) -> u64 {
        let own = u64::from(steps) * u64::from(self.passes);
        self.pixels * (own + u64::from(starts) * u64::from(STEPS_BESIDE))
    }
}

/// Generated work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Finished images.
    pub images: u64,
    /// Cost of all images, unfinished ones included: see [`ImageCost::pixel_steps`].
    pub pixel_steps: u64,
    /// Engine time; a batched step's is shared among its images.
    pub engine_time: Duration,
}

impl Work {
    /// Adds other work.
    pub fn include(&mut self, other: &Self) {
        self.images = self.images.saturating_add(other.images);
        self.pixel_steps = self.pixel_steps.saturating_add(other.pixel_steps);
        self.engine_time = self.engine_time.saturating_add(other.engine_time);
    }

    /// Pixel-steps in the unit of limits and reports.
    #[must_use]
    pub fn megapixel_steps(&self) -> f64 {
        self.pixel_steps as f64 / 1e6
    }
}

/// Usage of a key in one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayUsage {
    /// The day.
    pub day: Day,
    /// Authenticated requests.
    pub requests: u64,
    /// Work generated for it.
    pub work: Work,
}

/// The last `days` days up to `today`, the oldest first, including days without usage.
#[must_use]
pub fn by_day(today: Day, days: u32, requests: &[(Day, u64)], work: &[(Day, Work)]) -> Vec<DayUsage> {
    let requests: BTreeMap<_, _> = requests.iter().copied().collect();
    let work: BTreeMap<_, _> = work.iter().copied().collect();
    let usage = |day: Day| DayUsage {
        day,
        requests: requests.get(&day).copied().unwrap_or_default(),
        work: work.get(&day).copied().unwrap_or_default(),
    };
    (0..days).rev().map(|age| usage(today.before(age))).collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_day_begins_and_ends_at_midnight_utc() {
        let day = Day::of(datetime!(2030-01-31 0:00 UTC));
        assert_eq!(day.to_string(), "2030-01-31");
        assert_eq!(Day::of(datetime!(2030-01-31 23:59:59.999 UTC)), day);
        assert_eq!(Day::of(datetime!(2030-02-01 0:30 +1)), day);
        assert_eq!(Day::of(datetime!(1969-12-31 23:59 UTC)).number(), -1);
        assert_eq!(Day::from_number(day.number()).before(31).to_string(), "2029-12-31");
        assert_eq!(day.seconds_left(datetime!(2030-01-31 23:59:50 UTC)), 10);
        assert_eq!(day.seconds_left(datetime!(2030-02-01 0:00 UTC)), 1);
    }

    #[test]
    fn days_are_read_as_they_are_written() {
        let day = Day::of(datetime!(2028-02-29 12:00 UTC));
        assert_eq!("2028-02-29".parse(), Ok(day));
        for text in [
            "",
            "2030-02-29",
            "2030-1-31",
            "2030-01-31T00:00:00Z",
            "+2030-01-3",
            "+030-01-31",
            "31.01.2030",
            "ä030-01-3",
        ] {
            assert_eq!(text.parse::<Day>(), Err(InvalidDay), "{text}");
        }
        let range = DayRange { from: day.before(2), to: day };
        assert_eq!(range.days(), 3);
        assert_eq!(
            range.iter().map(|day| day.to_string()).collect::<Vec<_>>(),
            ["2028-02-27", "2028-02-28", "2028-02-29"]
        );
        assert_eq!(DayRange { from: day, to: day.before(1) }.days(), 0);
    }

    #[test]
    fn days_without_usage_are_included() {
        let today = Day::of(datetime!(2030-01-31 12:00 UTC));
        let work = Work { images: 2, pixel_steps: 3_500_000, engine_time: Duration::from_secs(1) };
        let usage = by_day(today, 3, &[(today.before(2), 7), (today.before(9), 1)], &[(today, work)]);
        assert_eq!(usage.iter().map(|day| day.requests).collect::<Vec<_>>(), [7, 0, 0]);
        assert_eq!(usage.iter().map(|day| day.work.images).collect::<Vec<_>>(), [0, 0, 2]);
        assert_eq!(usage[2].work.megapixel_steps(), 3.5);
    }
}
