//! Limits of an owner's concurrent jobs and daily usage, and the memory bound of all owners' input images.
//!
//! A job counts from its acceptance: with all its steps while it is unfinished, then with the steps that were done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::input_images::{InputImages, InputImagesHold};
use crate::domain::ids::KeyId;
use crate::domain::spec::GenerateSpec;

/// The limit that refuses one more job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The owner has as many concurrent jobs as allowed.
    #[error("the key has as many concurrent jobs as allowed: {limit}")]
    ConcurrentJobs {
        /// The limit.
        limit: u32,
        /// When one of them is likely to end.
        retry_after_seconds: u64,
    },
    /// The day's allowance is too small.
    #[error("{left} of the day's {limit} megapixel-steps are left, but the image takes {needed}")]
    MegapixelSteps {
        /// The day's allowance.
        limit: u32,
        /// What is left of it.
        left: u64,
        /// What the job would cost, rounded up.
        needed: u64,
        /// When the next day begins.
        retry_after_seconds: u64,
    },
}

/// Unfinished jobs of all owners.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    /// Owners without a job have no entry, so the queues' sizes bound it.
    outstanding: Mutex<HashMap<KeyId, Outstanding>>,
    /// Held while a daily allowance is checked, so that two jobs do not both get the last of it.
    pub(super) day_turn: tokio::sync::Mutex<()>,
    pub(super) input_images: Arc<InputImages>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outstanding {
    jobs: u32,
    pixel_steps: u64,
}

/// One job's part of its owner's limits, until it ends.
#[derive(Debug)]
pub(super) struct Allowance {
    all: Arc<Allowances>,
    owner: KeyId,
    pixel_steps: u64,
    /// Held for the job's images.
    pub(super) input_images: Option<InputImagesHold>,
}

impl Allowances {
    /// Pixel-steps of an owner's unfinished jobs.
    pub(super) fn promised_pixel_steps(&self, owner: KeyId) -> u64 {
        self.outstanding().get(&owner).map_or(0, |own| own.pixel_steps)
    }

    fn outstanding(&self) -> MutexGuard<'_, HashMap<KeyId, Outstanding>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more job, if the owner has fewer than `jobs_max`.
    pub(super) fn enter(self: &Arc<Self>, owner: KeyId, jobs_max: Option<u32>, pixel_steps: u64) -> Option<Allowance> {
        let mut all = self.outstanding();
        let jobs = all.get(&owner).map_or(0, |own| own.jobs);
        if jobs_max.is_some_and(|jobs_max| jobs >= jobs_max) {
            return None;
        }
        let own = all.entry(owner).or_default();
        own.jobs += 1;
        own.pixel_steps += pixel_steps;
        Some(Allowance { all: Arc::clone(self), owner, pixel_steps, input_images: None })
    }

    /// Counts a job accepted before a restart: its limits were checked then.
    pub(super) fn enter_again(self: &Arc<Self>, owner: KeyId, spec: &GenerateSpec) -> Allowance {
        let mut allowance = self.enter(owner, None, spec.pixel_steps()).expect("no limit");
        allowance.input_images = Some(self.input_images.enter_again(spec));
        allowance
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let mut all = self.all.outstanding();
        if let Some(own) = all.get_mut(&self.owner) {
            own.jobs -= 1;
            own.pixel_steps -= self.pixel_steps;
            if own.jobs == 0 {
                all.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_given_back() {
        let all = Arc::new(Allowances::default());
        let (owner, other) = (KeyId::generate(), KeyId::generate());
        let first = all.enter(owner, Some(2), 5).expect("room");
        let second = all.enter(owner, Some(2), 7).expect("room");
        assert!(all.enter(owner, Some(2), 1).is_none());
        let _other = all.enter(other, Some(1), 1).expect("limits are per owner");
        let third = all.enter(owner, None, 1).expect("no limit");
        assert_eq!(all.outstanding().get(&owner).map(|own| (own.jobs, own.pixel_steps)), Some((3, 13)));
        drop((first, second));
        assert_eq!(all.outstanding().get(&owner).map(|own| (own.jobs, own.pixel_steps)), Some((1, 1)));
        drop(third);
        assert!(!all.outstanding().contains_key(&owner), "an owner without a job has no entry");
    }
}
