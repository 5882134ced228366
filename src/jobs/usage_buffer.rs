//! Read access to the usage of owners.

use super::store::JobStore;
use super::{JobsError, WorkGroup, WorkSum};
use crate::domain::budget::BudgetHolder;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, DayRange, Work};
use crate::store::Store;

/// Reads the usage that is stored when jobs end. Cheap to clone.
#[derive(Clone)]
pub struct UsageBuffer(JobStore);

impl UsageBuffer {
    /// The usage stored in `store`.
    pub fn new(store: Store) -> Self {
        Self(JobStore::new(store))
    }

    /// An owner's usage by day since `since`; days without usage are left out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn by_day(&self, owner: KeyId, since: Day) -> Result<Vec<(Day, Work)>, JobsError> {
        self.0.work_by_day(owner, since).await
    }

    /// What a key, or all keys of a project, have used in the days.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn of(&self, holder: BudgetHolder, days: DayRange) -> Result<Work, JobsError> {
        self.0.work_of(holder, days).await
    }

    /// Sums over all owners in the days, in the order of their groups: at most `limit` groups after the group `after`.
    /// Groups without jobs are left out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sums(
        &self,
        group: WorkGroup,
        days: DayRange,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, WorkSum)>, JobsError> {
        self.0.work_sums(group, days, after, limit).await
    }
}
