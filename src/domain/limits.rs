//! Limits of one key, and its priority.

use crate::domain::priority::Priority;

/// Largest limit of requests per minute.
pub const REQUESTS_PER_MINUTE_MAX: u32 = 1_000_000;
/// Largest limit of concurrent jobs.
pub const CONCURRENT_JOBS_MAX: u32 = 100_000;
/// Largest limit of megapixel-steps per day: some 50 million images of a megapixel.
pub const MEGAPIXEL_STEPS_PER_DAY_MAX: u32 = 1_000_000_000;

/// The limits of one key, `None` for no limit, and its priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests per minute, of any kind.
    pub requests_per_minute: Option<u32>,
    /// Jobs that were accepted and have not ended.
    pub concurrent_jobs: Option<u32>,
    /// Megapixel-steps per UTC day ([`crate::domain::usage::ImageCost`]).
    pub megapixel_steps_per_day: Option<u32>,
    /// Its share of the device, relative to other keys with jobs.
    pub priority: Priority,
}

/// A limit that is zero or absurdly large. A key that must do nothing has to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{limit}` must be from 1 to {max}")]
pub struct InvalidLimit {
    /// The limit's name.
    pub limit: &'static str,
    /// Its largest value.
    pub max: u32,
}

impl KeyLimits {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first invalid one.
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
    fn a_limit_is_at_least_one_or_absent() {
        assert_eq!(KeyLimits::default().check(), Ok(()));
        assert_eq!(KeyLimits::default().priority, Priority::Normal, "no key goes first by default");
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
