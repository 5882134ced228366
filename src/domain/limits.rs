//! What one key may use up, where somebody has set a bound, and its share beside others.

use crate::domain::priority::Priority;

/// Most requests a minute that a key can be limited to; more is no limit.
pub const REQUESTS_PER_MINUTE_MAX: u32 = 1_000_000;
/// Most jobs at one time that a key can be limited to.
pub const CONCURRENT_JOBS_MAX: u32 = 100_000;
/// Most megapixel-steps a day that a key can be limited to: some 50 million images of a megapixel.
pub const MEGAPIXEL_STEPS_PER_DAY_MAX: u32 = 1_000_000_000;

/// The bounds of one key, `None` for none, and its priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests in a minute, of any kind.
    pub requests_per_minute: Option<u32>,
    /// Jobs that have been accepted and have not ended.
    pub concurrent_jobs: Option<u32>,
    /// Megapixel-steps in a UTC day: what images cost ([`crate::domain::usage::ImageCost`]).
    pub megapixel_steps_per_day: Option<u32>,
    /// Its share of the device, next to keys that have jobs at the same time.
    pub priority: Priority,
}

/// A bound that is none: nothing, or more than can be meant. A key that shall do nothing is to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{limit}` must be from 1 to {max}")]
pub struct InvalidLimit {
    /// Which one.
    pub limit: &'static str,
    /// The most it can be.
    pub max: u32,
}

impl KeyLimits {
    /// Checks that every bound is one.
    ///
    /// # Errors
    /// The first that is none.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let limits = [
            ("requests_per_minute", self.requests_per_minute, REQUESTS_PER_MINUTE_MAX),
            ("concurrent_jobs", self.concurrent_jobs, CONCURRENT_JOBS_MAX),
            ("megapixel_steps_per_day", self.megapixel_steps_per_day, MEGAPIXEL_STEPS_PER_DAY_MAX),
        ];
        for (limit, value, max) in limits {
            if value.is_some_and(|value| !(1..=max).contains(&value)) {
                return Err(InvalidLimit { limit, max });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_at_least_one_and_can_be_missing() {
        assert_eq!(KeyLimits::default().check(), Ok(()));
        assert_eq!(KeyLimits::default().priority, Priority::Normal, "nobody comes first unless somebody says so");
        let largest = KeyLimits {
            requests_per_minute: Some(REQUESTS_PER_MINUTE_MAX),
            concurrent_jobs: Some(1),
            megapixel_steps_per_day: Some(MEGAPIXEL_STEPS_PER_DAY_MAX),
            priority: Priority::Low,
        };
        assert_eq!(largest.check(), Ok(()));
        let nothing = KeyLimits { concurrent_jobs: Some(0), ..largest };
        assert_eq!(nothing.check().map_err(|error| error.limit), Err("concurrent_jobs"));
        let beyond = KeyLimits { requests_per_minute: Some(REQUESTS_PER_MINUTE_MAX + 1), ..largest };
        assert_eq!(beyond.check().map_err(|error| error.limit), Err("requests_per_minute"));
    }
}
