//! Limits of one key and of projects, and a key's priority.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::domain::adapter::AdapterId;
use crate::domain::budget::{BUDGET_MEGAPIXEL_STEPS_MAX, Budget, BudgetHolder, InvalidBudget};
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::money::MONEY_MAX;
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
    /// What it may use up in a month.
    pub budget: Option<Budget>,
    /// The project that it belongs to, whose limits apply as well. Read with the key, not set with its limits.
    pub project: Option<ProjectTerms>,
}

/// The limits of all keys of a project together, `None` for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// As [`KeyLimits::requests_per_minute`].
    pub requests_per_minute: Option<u32>,
    /// As [`KeyLimits::concurrent_jobs`].
    pub concurrent_jobs: Option<u32>,
    /// As [`KeyLimits::megapixel_steps_per_day`].
    pub megapixel_steps_per_day: Option<u32>,
    /// As [`KeyLimits::budget`].
    pub budget: Option<Budget>,
}

/// A project, as a request of one of its keys needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectTerms {
    /// Its id.
    pub id: ProjectId,
    /// Its limits.
    pub limits: GroupLimits,
}

/// Whose limit a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitHolder {
    /// The key's own.
    Key,
    /// Its project's.
    Project,
}

/// As in `the limit of the key's project`.
impl fmt::Display for LimitHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Key => "key",
            Self::Project => "key's project",
        })
    }
}

/// A limit that is zero or absurdly large. A key that must do nothing has to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{limit}` must be from 1 to {max}")]
pub struct InvalidLimit {
    /// The limit's name.
    pub limit: &'static str,
    /// Its largest value.
    pub max: u64,
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
        self.own().check()
    }

    /// The limits that are its own, of the kinds that projects have as well.
    #[must_use]
    pub fn own(&self) -> GroupLimits {
        GroupLimits {
            requests_per_minute: self.requests_per_minute,
            concurrent_jobs: self.concurrent_jobs,
            megapixel_steps_per_day: self.megapixel_steps_per_day,
            budget: self.budget,
        }
    }

    /// The limits that apply to `key`, its own ones first, then its project's, and whose they are.
    pub fn all(&self, key: KeyId) -> impl Iterator<Item = (LimitHolder, BudgetHolder, GroupLimits)> + use<> {
        let own = (LimitHolder::Key, BudgetHolder::Key(key), self.own());
        let of_project =
            |project: ProjectTerms| (LimitHolder::Project, BudgetHolder::Project(project.id), project.limits);
        std::iter::once(own).chain(self.project.map(of_project))
    }
}

impl GroupLimits {
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
                return Err(InvalidLimit { limit, max: max.into() });
            }
        }
        match self.budget.map(Budget::check) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(InvalidBudget::MegapixelSteps)) => {
                Err(InvalidLimit { limit: "budget.megapixel_steps", max: BUDGET_MEGAPIXEL_STEPS_MAX })
            }
            Some(Err(InvalidBudget::Money)) => Err(InvalidLimit { limit: "budget.money", max: MONEY_MAX }),
        }
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
            ..KeyLimits::default()
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
