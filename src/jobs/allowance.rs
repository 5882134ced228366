//! How many jobs an owner may have at one time, and how much may be drawn for it in a day, where somebody has set a bound;
//! and what the images that jobs start from take up, of all owners together.
//!
//! A job counts from its acceptance: with all its steps while it has not ended, and then with those that were done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::input_images::{InputImageHold, InputImages};
use super::service::Inner;
use super::{JobsError, Submission};
use crate::domain::ids::KeyId;
use crate::domain::spec::GenerateSpec;
use crate::domain::usage::Day;
use crate::queue::Queue;

const PIXELS_PER_MEGAPIXEL: u64 = 1_000_000;

/// Which bound does not let one more job in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// As many jobs as the owner may have at one time.
    #[error("the key has as many jobs as it may at one time: {limit}")]
    ConcurrentJobs {
        /// How many those are.
        limit: u32,
        /// When one of them is likely to end.
        retry_after_seconds: u64,
    },
    /// The day's share does not suffice.
    #[error("of the day's {limit} megapixel-steps {left} are left, and the image takes {needed}")]
    MegapixelSteps {
        /// The whole share.
        limit: u32,
        /// What is left of it.
        left: u64,
        /// What the job would take, rounded up.
        needed: u64,
        /// When there is a new one.
        retry_after_seconds: u64,
    },
}

/// What the owners' unfinished jobs take up.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    /// Those without a job are not in it, so it is no longer than the queues have places.
    outstanding: Mutex<HashMap<KeyId, Outstanding>>,
    /// Held while it is looked whether a day's share suffices, so that two jobs do not both get the last of it.
    day_turn: tokio::sync::Mutex<()>,
    input_images: Arc<InputImages>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outstanding {
    jobs: u32,
    pixel_steps: u64,
}

/// What one job takes up, until it has ended.
#[derive(Debug)]
pub(super) struct Allowance {
    all: Arc<Allowances>,
    owner: KeyId,
    pixel_steps: u64,
    /// Taken where there is something to start from.
    input_image: Option<InputImageHold>,
}

impl Allowances {
    fn outstanding(&self) -> MutexGuard<'_, HashMap<KeyId, Outstanding>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more job in, if the owner has fewer than `jobs_max`.
    fn enter(self: &Arc<Self>, owner: KeyId, jobs_max: Option<u32>, pixel_steps: u64) -> Option<Allowance> {
        let mut all = self.outstanding();
        let jobs = all.get(&owner).map_or(0, |own| own.jobs);
        if jobs_max.is_some_and(|jobs_max| jobs >= jobs_max) {
            return None;
        }
        let own = all.entry(owner).or_default();
        own.jobs += 1;
        own.pixel_steps += pixel_steps;
        Some(Allowance { all: Arc::clone(self), owner, pixel_steps, input_image: None })
    }

    /// Takes a job in that was accepted in an earlier life: its bounds were looked at then.
    pub(super) fn enter_again(self: &Arc<Self>, owner: KeyId, spec: &GenerateSpec) -> Allowance {
        let mut allowance = self.enter(owner, None, spec.pixel_steps()).expect("without a bound there is always room");
        allowance.input_image = Some(self.input_images.enter_again(spec));
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

/// Takes a new job in, if its owner's bounds let it, and there is room for what it starts from.
pub(super) async fn take(inner: &Inner, submission: &Submission, queue: &Queue) -> Result<Allowance, JobsError> {
    let bytes_max = inner.settings.input_images_bytes_max;
    let input_image = inner.allowances.input_images.enter(&submission.spec, bytes_max);
    let full = || JobsError::QueueFull { retry_after_seconds: queue.retry_after_seconds() };
    let input_image = input_image.ok_or_else(full)?;
    let mut allowance = take_of_owner(inner, submission, queue).await?;
    allowance.input_image = Some(input_image);
    Ok(allowance)
}

async fn take_of_owner(inner: &Inner, submission: &Submission, queue: &Queue) -> Result<Allowance, JobsError> {
    let Submission { owner, limits, .. } = submission;
    let pixel_steps = submission.spec.pixel_steps();
    let enter = || {
        let too_many = LimitReached::ConcurrentJobs {
            limit: limits.concurrent_jobs.unwrap_or_default(),
            retry_after_seconds: queue.retry_after_seconds(),
        };
        inner.allowances.enter(*owner, limits.concurrent_jobs, pixel_steps).ok_or(JobsError::LimitReached(too_many))
    };
    let Some(limit) = limits.megapixel_steps_per_day else { return enter() };
    let _turn = inner.allowances.day_turn.lock().await;
    let now = inner.clock.now();
    let today = Day::of(now);
    // In this order: a job that ends in between counts twice for a moment, and not nowhere.
    let promised = inner.allowances.outstanding().get(owner).map_or(0, |own| own.pixel_steps);
    let work = inner.store.work_by_day(*owner, today).await?;
    // Of today alone: where the clock was ahead, there are days to come in which something was drawn.
    let done: u64 = work.iter().filter(|(day, _)| *day == today).map(|(_, work)| work.pixel_steps).sum();
    let left = (u64::from(limit) * PIXELS_PER_MEGAPIXEL).saturating_sub(done + promised);
    if pixel_steps > left {
        return Err(JobsError::LimitReached(LimitReached::MegapixelSteps {
            limit,
            left: left / PIXELS_PER_MEGAPIXEL,
            needed: pixel_steps.div_ceil(PIXELS_PER_MEGAPIXEL),
            retry_after_seconds: today.seconds_left(now),
        }));
    }
    enter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_up_is_given_back() {
        let all = Arc::new(Allowances::default());
        let (owner, other) = (KeyId::generate(), KeyId::generate());
        let first = all.enter(owner, Some(2), 5).expect("room");
        let second = all.enter(owner, Some(2), 7).expect("room");
        assert!(all.enter(owner, Some(2), 1).is_none());
        let _other = all.enter(other, Some(1), 1).expect("others have their own");
        let third = all.enter(owner, None, 1).expect("without a bound there is always room");
        assert_eq!(all.outstanding().get(&owner).map(|own| (own.jobs, own.pixel_steps)), Some((3, 13)));
        drop((first, second));
        assert_eq!(all.outstanding().get(&owner).map(|own| (own.jobs, own.pixel_steps)), Some((1, 1)));
        drop(third);
        assert!(!all.outstanding().contains_key(&owner), "who has no job is forgotten");
    }
}
