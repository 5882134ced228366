//! Counts watches of jobs, in total and per owner.

use crate::domain::ids::KeyId;
use crate::domain::owner_counts::{OwnerCounts, OwnerHold};

/// Maximum watches of one owner.
pub const WATCHES_PER_OWNER_MAX: usize = 32;
/// Maximum watches in total: each holds a connection, and requests need some, too.
pub const WATCHES_MAX: usize = 256;

/// Counts watches.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(OwnerCounts);

impl Watchers {
    /// Counts one more; `None` when a limit is reached.
    pub(super) fn enter(&self, owner: KeyId) -> Option<OwnerHold> {
        self.0.take_if(owner, |own, total| own < WATCHES_PER_OWNER_MAX && total < WATCHES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_limited_per_owner_and_in_total() {
        let watchers = Watchers::default();
        let owner = KeyId::generate();
        let mut held: Vec<_> = (0..WATCHES_PER_OWNER_MAX).map(|_| watchers.enter(owner).expect("a share")).collect();
        assert!(watchers.enter(owner).is_none());
        while held.len() < WATCHES_MAX {
            held.push(watchers.enter(KeyId::generate()).expect("room"));
        }
        assert!(watchers.enter(KeyId::generate()).is_none(), "the total limit");
        held.clear();
        assert_eq!(watchers.0.owners(), 0, "owners without a watch have no entry");
        assert!(watchers.enter(owner).is_some());
    }
}
