//! Read access to the usage of owners.

use super::JobsError;
use super::store::JobStore;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, Work};
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
}
