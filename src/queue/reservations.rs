//! How many jobs wait and run, together and of each owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::ids::KeyId;

/// Counts the jobs that wait or run.
#[derive(Debug)]
pub(super) struct Reservations {
    /// By owner; those without a job are not in it, so it is no longer than there are places.
    taken: Mutex<HashMap<KeyId, usize>>,
    max: usize,
}

/// One counted place; travels with the job until its end, and with its listener until that is done.
#[derive(Debug)]
pub(super) struct ReservationHold {
    reservations: Arc<Reservations>,
    owner: KeyId,
}

impl Reservations {
    pub(super) fn new(max: usize) -> Self {
        Self { taken: Mutex::default(), max }
    }

    pub(super) fn jobs_max(&self) -> usize {
        self.max
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if there is one within the owner's share: nobody may hold more places than are left free for others. So
    /// one owner gets half of them, two get a third each, and who has none finds one until the very last is taken.
    pub(super) fn take_within_share(self: &Arc<Self>, owner: KeyId) -> Option<ReservationHold> {
        self.take_if(owner, |own, free| own < free)
    }

    /// A place, if there is one.
    pub(super) fn take(self: &Arc<Self>, owner: KeyId) -> Option<ReservationHold> {
        self.take_if(owner, |_, free| free > 0)
    }

    fn take_if(
        self: &Arc<Self>,
        owner: KeyId,
        is_allowed: impl FnOnce(usize, usize) -> bool,
    ) -> Option<ReservationHold> {
        let mut taken = self.lock();
        let own = taken.get(&owner).copied().unwrap_or(0);
        let free = self.max.saturating_sub(taken.values().sum());
        if !is_allowed(own, free) {
            return None;
        }
        taken.insert(owner, own + 1);
        Some(ReservationHold { reservations: Arc::clone(self), owner })
    }
}

impl Drop for ReservationHold {
    fn drop(&mut self) {
        let mut taken = self.reservations.lock();
        let left = taken.get(&self.owner).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            taken.remove(&self.owner);
        } else {
            taken.insert(self.owner, left);
        }
    }
}
