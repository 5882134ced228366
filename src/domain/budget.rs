//! Budgets: what a key or a project may use up in a calendar month.

use std::fmt;

use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::money::{Money, Prices};
use crate::domain::usage::Work;

/// Largest budget of megapixel-steps.
pub const BUDGET_MEGAPIXEL_STEPS_MAX: u64 = 1_000_000_000_000;

const PIXELS_PER_MEGAPIXEL: u64 = 1_000_000;

/// What may be used up in a calendar month, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Megapixel-steps ([`crate::domain::usage::ImageCost`]).
    MegapixelSteps(u64),
    /// An amount of money, by the prices that the worker has.
    Money(Money),
}

/// A budget of nothing, or an absurdly large one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBudget {
    /// Of megapixel-steps.
    #[error("must be from 1 to {BUDGET_MEGAPIXEL_STEPS_MAX} megapixel-steps")]
    MegapixelSteps,
    /// Of money.
    #[error("must be more than 0")]
    Money,
}

/// How much of a budget is used, in its own unit: pixel-steps, or millionths of the currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUse {
    /// What is used.
    pub used: u64,
    /// The whole budget.
    pub total: u64,
}

/// Whose budget it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BudgetHolder {
    /// A key.
    Key(KeyId),
    /// A project.
    Project(ProjectId),
}

/// A share of a budget that is told of when it is reached, once a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BudgetLevel {
    /// Most of it is used.
    Warning,
    /// It is used up: further requests are refused.
    Exhausted,
}

impl Budget {
    /// Checks that it is neither nothing nor too much.
    ///
    /// # Errors
    /// When it is.
    pub fn check(self) -> Result<(), InvalidBudget> {
        match self {
            Self::MegapixelSteps(steps) if !(1..=BUDGET_MEGAPIXEL_STEPS_MAX).contains(&steps) => {
                Err(InvalidBudget::MegapixelSteps)
            }
            Self::Money(money) if money == Money::default() => Err(InvalidBudget::Money),
            Self::MegapixelSteps(_) | Self::Money(_) => Ok(()),
        }
    }

    /// How much of it `work` uses. `None` for a budget of money without prices, which says nothing.
    #[must_use]
    pub fn used_by(self, work: &Work, prices: Option<&Prices>) -> Option<BudgetUse> {
        match self {
            Self::MegapixelSteps(steps) => {
                Some(BudgetUse { used: work.pixel_steps, total: steps.saturating_mul(PIXELS_PER_MEGAPIXEL) })
            }
            Self::Money(money) => {
                prices.map(|prices| BudgetUse { used: prices.cost(work).micros(), total: money.micros() })
            }
        }
    }
}

/// As in `100 megapixel-steps`.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MegapixelSteps(steps) => write!(f, "{steps} megapixel-steps"),
            Self::Money(money) => money.fmt(f),
        }
    }
}

impl BudgetUse {
    /// Whether it has reached a level.
    #[must_use]
    pub fn has_reached(self, level: BudgetLevel) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.total) * u128::from(level.percent())
    }

    /// The share that is used; more than 1 if more is used than there was.
    #[must_use]
    pub fn share(self) -> f64 {
        if self.total == 0 { 1.0 } else { self.used as f64 / self.total as f64 }
    }
}

impl BudgetHolder {
    /// `key` or `project`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Project(_) => "project",
        }
    }

    /// The id as text.
    #[must_use]
    pub fn id_text(&self) -> String {
        match self {
            Self::Key(id) => id.to_string(),
            Self::Project(id) => id.to_string(),
        }
    }

    /// The holder of this kind and id, if they are valid.
    #[must_use]
    pub fn of(kind: &str, id: &str) -> Option<Self> {
        match kind {
            "key" => id.parse().ok().map(Self::Key),
            "project" => id.parse().ok().map(Self::Project),
            _ => None,
        }
    }
}

impl BudgetLevel {
    /// Every level, the lowest first.
    pub const ALL: [Self; 2] = [Self::Warning, Self::Exhausted];

    /// The share of the budget, in percent.
    #[must_use]
    pub fn percent(self) -> u8 {
        match self {
            Self::Warning => 80,
            Self::Exhausted => 100,
        }
    }

    /// The level of such a share.
    #[must_use]
    pub fn of_percent(percent: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| i64::from(level.percent()) == percent)
    }

    /// Its word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Exhausted => "exhausted",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn work(pixel_steps: u64) -> Work {
        Work { images: 1, pixel_steps, engine_time: Duration::from_secs(1) }
    }

    #[test]
    fn a_level_is_reached_exactly_at_its_share() {
        let used = |pixel_steps| Budget::MegapixelSteps(10).used_by(&work(pixel_steps), None).expect("steps");
        assert!(!used(7_999_999).has_reached(BudgetLevel::Warning));
        assert!(used(8_000_000).has_reached(BudgetLevel::Warning));
        assert!(!used(9_999_999).has_reached(BudgetLevel::Exhausted));
        assert!(used(10_000_000).has_reached(BudgetLevel::Exhausted));
        assert_eq!(used(5_000_000).share(), 0.5);
    }

    #[test]
    fn a_budget_of_money_needs_prices() {
        let budget = Budget::Money("2".parse().expect("money"));
        assert_eq!(budget.used_by(&work(1_000_000), None), None);
        let prices = Prices {
            per_megapixel_step: "1".parse().expect("a price"),
            per_engine_second: "0.5".parse().expect("a price"),
            currency: "EUR".parse().expect("a currency"),
        };
        let used = budget.used_by(&work(1_000_000), Some(&prices));
        assert_eq!(used, Some(BudgetUse { used: 1_500_000, total: 2_000_000 }));
    }

    #[test]
    fn budgets_of_nothing_are_refused() {
        assert_eq!(Budget::MegapixelSteps(0).check(), Err(InvalidBudget::MegapixelSteps));
        assert_eq!(Budget::Money(Money::default()).check(), Err(InvalidBudget::Money));
        assert_eq!(Budget::MegapixelSteps(BUDGET_MEGAPIXEL_STEPS_MAX).check(), Ok(()));
    }

    #[test]
    fn holders_and_levels_survive_the_database() {
        for holder in [BudgetHolder::Key(KeyId::generate()), BudgetHolder::Project(ProjectId::generate())] {
            assert_eq!(BudgetHolder::of(holder.kind(), &holder.id_text()), Some(holder));
        }
        for level in BudgetLevel::ALL {
            assert_eq!(BudgetLevel::of_percent(level.percent().into()), Some(level));
        }
    }
}
