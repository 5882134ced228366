//! Who has used what, what it costs, and how much is left of budgets.
//!
//! Puts together what `auth` knows of keys and projects and `jobs` of work. Owns the table of alerts of budgets. Knows
//! nothing of HTTP, nor of how an alert gets to people who do not look.

mod alerts;
mod budgets;
mod report;
mod store;

use std::fmt;

pub use alerts::BudgetAlert;
pub use budgets::BudgetStanding;
pub use report::{GroupBy, ROWS_PER_PAGE, UnknownGroup, UsagePage, UsageRow};

use crate::auth::{KeyError, KeyFailure, KeyService, ProjectError};
use crate::domain::money::{Money, Prices};
use crate::domain::usage::Work;
use crate::jobs::{JobService, JobsError};
use crate::store::{Store, StoreError};
use store::AlertStore;

/// Reads usage and watches budgets. Cheap to clone.
#[derive(Clone)]
pub struct Usage {
    keys: KeyService,
    jobs: JobService,
    alerts: AlertStore,
}

/// Why usage cannot be read, or an alert not be stored: the database failed.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Of work.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// Of keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Of projects.
    #[error(transparent)]
    Projects(#[from] ProjectError),
    /// Of the audit log.
    #[error(transparent)]
    Audit(#[from] KeyFailure),
    /// Of alerts.
    #[error(transparent)]
    Alerts(#[from] StoreError),
}

impl Usage {
    /// The usage of `keys` in `store`, where `jobs` are charged.
    pub fn new(store: Store, keys: KeyService, jobs: JobService) -> Self {
        Self { keys, jobs, alerts: AlertStore::new(store) }
    }

    /// What work costs, if the operator has set prices.
    pub fn prices(&self) -> Option<&Prices> {
        self.jobs.prices()
    }

    /// The cost of some work, if there are prices.
    fn cost(&self, work: &Work) -> Option<Money> {
        self.prices().map(|prices| prices.cost(work))
    }
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Usage").finish_non_exhaustive()
    }
}
