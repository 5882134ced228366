//! Counts per owner, for limits on what owners hold at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::ids::KeyId;

/// Counts what owners hold. Owners that hold nothing have no entry. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct OwnerCounts(Arc<Mutex<HashMap<KeyId, usize>>>);

/// One counted item, until it is dropped.
#[derive(Debug)]
#[must_use = "a dropped hold is not counted"]
pub struct OwnerHold {
    counts: OwnerCounts,
    owner: KeyId,
}

impl OwnerCounts {
    /// Counts one more for `owner`, if its own count and the total so far are allowed.
    pub fn take_if(&self, owner: KeyId, is_allowed: impl FnOnce(usize, usize) -> bool) -> Option<OwnerHold> {
        let mut counts = self.lock();
        let own = counts.get(&owner).copied().unwrap_or(0);
        if !is_allowed(own, counts.values().sum()) {
            return None;
        }
        counts.insert(owner, own + 1);
        Some(OwnerHold { counts: self.clone(), owner })
    }

    /// Number of owners that hold something.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OwnerHold {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.owner);
            }
        }
    }
}
