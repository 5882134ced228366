//! How much is used of a budget.

use super::{Usage, UsageError};
use crate::domain::budget::{Budget, BudgetHolder, BudgetUse};
use crate::domain::month::Month;
use crate::domain::usage::{DayRange, Work};

/// A budget in the present month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetStanding {
    /// The budget.
    pub budget: Budget,
    /// The month.
    pub month: Month,
    /// The work of this month's jobs that have ended.
    pub work: Work,
    /// How much of the budget that is. `None` for a budget of money without prices.
    pub used: Option<BudgetUse>,
}

impl Usage {
    /// A holder's budget in the present month.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn standing(&self, holder: BudgetHolder, budget: Budget) -> Result<BudgetStanding, UsageError> {
        let month = Month::of(self.keys.now());
        let days = DayRange { from: month.first(), to: month.end().before(1) };
        let work = self.jobs.usage_buffer().of(holder, days).await?;
        Ok(BudgetStanding { budget, month, work, used: budget.used_by(&work, self.prices()) })
    }
}
