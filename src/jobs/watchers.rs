//! How many are watching jobs, together and of each owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::ids::KeyId;

/// Most watches of one owner at a time.
pub const WATCHES_PER_OWNER_MAX: usize = 32;
/// Most watches in all: each has a connection, and there must be some left for requests.
pub const WATCHES_MAX: usize = 256;

/// Counts those who watch, by owner. Who does not watch is not in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<HashMap<KeyId, usize>>>);

/// One watch's part of the share, until it is dropped.
#[derive(Debug)]
pub(super) struct WatchHold {
    watchers: Watchers,
    owner: KeyId,
}

impl Watchers {
    /// One more; `None` when there are as many as there may be.
    pub(super) fn enter(&self, owner: KeyId) -> Option<WatchHold> {
        let mut counts = self.counts();
        let own = counts.get(&owner).copied().unwrap_or(0);
        if own >= WATCHES_PER_OWNER_MAX || counts.values().sum::<usize>() >= WATCHES_MAX {
            return None;
        }
        counts.insert(owner, own + 1);
        Some(WatchHold { watchers: self.clone(), owner })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<KeyId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WatchHold {
    fn drop(&mut self) {
        let mut counts = self.watchers.counts();
        if let Some(count) = counts.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_a_share_and_all_have_a_bound() {
        let watchers = Watchers::default();
        let owner = KeyId::generate();
        let mut held: Vec<_> = (0..WATCHES_PER_OWNER_MAX).map(|_| watchers.enter(owner).expect("a share")).collect();
        assert!(watchers.enter(owner).is_none());
        while held.len() < WATCHES_MAX {
            held.push(watchers.enter(KeyId::generate()).expect("room"));
        }
        assert!(watchers.enter(KeyId::generate()).is_none(), "the bound of all");
        held.clear();
        assert!(watchers.counts().is_empty(), "who has left is forgotten");
        assert!(watchers.enter(owner).is_some());
    }
}
