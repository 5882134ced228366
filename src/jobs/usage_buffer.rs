//! What was drawn for whom, for those who only want to know.

use super::JobsError;
use super::store::JobStore;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, Work};
use crate::store::Store;

/// Reads what is written when jobs end. Cheap to clone.
#[derive(Clone)]
pub struct UsageBuffer(JobStore);

impl UsageBuffer {
    /// What is written in `store`.
    pub fn new(store: Store) -> Self {
        Self(JobStore::new(store))
    }

    /// What was drawn for an owner in each day since `since`, where anything was.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn by_day(&self, owner: KeyId, since: Day) -> Result<Vec<(Day, Work)>, JobsError> {
        self.0.work_by_day(owner, since).await
    }
}
