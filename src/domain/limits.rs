//! Limits of one key, and its priority.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use crate::domain::adapter::AdapterId;
use crate::domain::priority::Priority;

/// Largest limit of requests per minute.
pub const REQUESTS_PER_MINUTE_MAX: u32 = 1_000_000;
/// Largest limit of concurrent jobs.
pub const CONCURRENT_JOBS_MAX: u32 = 100_000;
/// Largest limit of megapixel-steps per day: some 50 million images of a megapixel.
pub const MEGAPIXEL_STEPS_PER_DAY_MAX: u32 = 1_000_000_000;

/// Maximum LoRAs in the list of a key.
pub const LORAS_LISTED_MAX: usize = 100;

/// Longest name of a LoRA in such a list, in characters.
const LORA_CHARS_MAX: usize = 100;

/// The LoRAs that a key may use, by id or by name. One need not exist, now or ever: a name stands for whatever has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraList(Arc<BTreeSet<String>>);

/// A list of LoRAs that is too long, or has a text that is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be at most {LORAS_LISTED_MAX} ids or names of LoRAs, each of 1 to {LORA_CHARS_MAX} characters")]
pub struct InvalidLoraList;

impl LoraList {
    /// A list of these.
    ///
    /// # Errors
    /// When there are too many, or one is empty or too long.
    pub fn new(loras: impl IntoIterator<Item = String>) -> Result<Self, InvalidLoraList> {
        let loras: BTreeSet<String> = loras.into_iter().map(|lora| lora.trim().to_owned()).collect();
        let is_fit = |lora: &String| (1..=LORA_CHARS_MAX).contains(&lora.chars().count());
        let is_valid = loras.len() <= LORAS_LISTED_MAX && loras.iter().all(is_fit);
        if is_valid { Ok(Self(Arc::new(loras))) } else { Err(InvalidLoraList) }
    }

    /// The ids and names, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether a LoRA is in the list, by its id or its name.
    #[must_use]
    pub fn has(&self, id: &AdapterId, name: &str) -> bool {
        self.0.contains(id.as_str()) || self.0.contains(name)
    }
}

impl FromStr for LoraList {
    type Err = InvalidLoraList;

    /// Ids and names separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.split(',').map(str::to_owned))
    }
}

/// The limits of one key, `None` for no limit, and its priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests per minute, of any kind.
    pub requests_per_minute: Option<u32>,
    /// Jobs that were accepted and have not ended.
    pub concurrent_jobs: Option<u32>,
    /// Megapixel-steps per UTC day ([`crate::domain::usage::ImageCost`]).
    pub megapixel_steps_per_day: Option<u32>,
    /// Its share of the device, relative to other keys with jobs.
    pub priority: Priority,
    /// The LoRAs that it may use; an empty list allows none.
    pub loras: Option<LoraList>,
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
    /// Whether the key may use a LoRA.
    #[must_use]
    pub fn allows_lora(&self, id: &AdapterId, name: &str) -> bool {
        self.loras.as_ref().is_none_or(|loras| loras.has(id, name))
    }

    /// Whether the key may be told that no LoRA has this id or name: those that its list does not name are refused, whether they
    /// are there or not.
    #[must_use]
    pub fn may_miss_lora(&self, wanted: &str) -> bool {
        self.loras.as_ref().is_none_or(|LoraList(loras)| loras.contains(wanted))
    }

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
            loras: None,
        };
        assert_eq!(largest.check(), Ok(()));
        let nothing = KeyLimits { concurrent_jobs: Some(0), ..largest.clone() };
        assert_eq!(nothing.check().map_err(|error| error.limit), Err("concurrent_jobs"));
        let beyond = KeyLimits { requests_per_minute: Some(REQUESTS_PER_MINUTE_MAX + 1), ..largest };
        assert_eq!(beyond.check().map_err(|error| error.limit), Err("requests_per_minute"));
    }

    #[test]
    fn a_list_of_loras_names_them_by_id_or_name() {
        let id = AdapterId::of_sha256([7; 32]);
        assert!(KeyLimits::default().allows_lora(&id, "pen"), "no list allows all");
        let limits = |list: &str| KeyLimits { loras: Some(list.parse().expect("a list")), ..KeyLimits::default() };
        assert!(limits("ink, pen").allows_lora(&id, "pen") && limits(id.as_str()).allows_lora(&id, "pen"));
        assert!(!limits("ink").allows_lora(&id, "pen"));
        assert!(KeyLimits::default().may_miss_lora("pen") && limits("ink,pen").may_miss_lora("pen"));
        assert!(!limits("ink").may_miss_lora("pen"), "it is not told whether another one is there");
        let none = KeyLimits { loras: LoraList::new([]).ok(), ..KeyLimits::default() };
        assert!(!none.allows_lora(&id, "pen"), "an empty list allows none");
        let many = (0..=LORAS_LISTED_MAX).map(|number| number.to_string());
        assert_eq!(LoraList::new(many), Err(InvalidLoraList));
        for list in ["", "pen,,ink", &"x".repeat(101)] {
            assert_eq!(list.parse::<LoraList>(), Err(InvalidLoraList), "{list}");
        }
    }
}
