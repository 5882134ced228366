//! Reservations: how many jobs wait and run, in total and per owner.

use crate::domain::ids::KeyId;
use crate::domain::owner_counts::{OwnerCounts, OwnerHold};

/// Counts pending and running jobs.
#[derive(Debug)]
pub(super) struct Reservations {
    counts: OwnerCounts,
    max: usize,
}

impl Reservations {
    pub(super) fn new(max: usize) -> Self {
        Self { counts: OwnerCounts::default(), max }
    }

    pub(super) fn jobs_max(&self) -> usize {
        self.max
    }

    /// Reserves within the owner's share: no owner may hold more than are left free for others. So one owner gets half,
    /// two get a third each, and a new owner finds room until the very last is taken.
    pub(super) fn take_within_share(&self, owner: KeyId) -> Option<OwnerHold> {
        self.counts.take_if(owner, |own, total| own < self.max.saturating_sub(total))
    }

    /// Reserves whatever the owner already holds.
    pub(super) fn take(&self, owner: KeyId) -> Option<OwnerHold> {
        self.counts.take_if(owner, |_, total| total < self.max)
    }
}
