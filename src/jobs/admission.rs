//! Admission of submissions: the earlier job of a repeated request, the owner's limits, and room in the queue.

use super::allowance::{Allowance, LimitReached};
use super::idempotency::{self, RepeatKey};
use super::state::Inner;
use super::{Job, JobsError, Submission};
use crate::domain::ids::KeyId;
use crate::domain::usage::Day;
use crate::queue::{Queue, Reservation, ReserveError};

const PIXELS_PER_MEGAPIXEL: u64 = 1_000_000;

impl Inner {
    /// The owner's job with this idempotency key.
    ///
    /// # Errors
    /// [`JobsError::OtherRequest`] when it was used for a different request.
    pub(super) async fn earlier_job(&self, owner: KeyId, key: &RepeatKey) -> Result<Option<Job>, JobsError> {
        let Some((digest, id)) = self.store.repeated(owner, &key.word, idempotency::cutoff(self.paced().now)).await?
        else {
            return Ok(None);
        };
        if digest != key.body_digest {
            return Err(JobsError::OtherRequest);
        }
        match self.store.get(id).await {
            Ok(job) => Ok(Some(job)),
            // Deleted between the two look-ups, together with the idempotency key.
            Err(JobsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Counts a new job, if its owner's limits and the memory for input images allow it, and reserves room in the
    /// queue.
    pub(super) async fn admit(
        &self,
        submission: &Submission,
        queue: &Queue,
    ) -> Result<(Allowance, Reservation), JobsError> {
        let bytes_max = self.settings.input_images_bytes_max;
        let input_images = self.allowances.input_images.enter(&submission.spec, bytes_max);
        let full = || JobsError::QueueFull { retry_after_seconds: queue.retry_after_seconds() };
        let input_images = input_images.ok_or_else(full)?;
        let mut allowance = self.allowance_of_owner(submission, queue).await?;
        allowance.input_images = Some(input_images);
        let reservation = queue.reserve(submission.owner).map_err(|refusal| match refusal {
            ReserveError::Full { retry_after_seconds } => JobsError::QueueFull { retry_after_seconds },
            ReserveError::Draining => JobsError::Draining,
        })?;
        Ok((allowance, reservation))
    }

    async fn allowance_of_owner(&self, submission: &Submission, queue: &Queue) -> Result<Allowance, JobsError> {
        let Submission { owner, limits, .. } = submission;
        let pixel_steps = submission.spec.pixel_steps();
        let enter = || {
            let too_many = LimitReached::ConcurrentJobs {
                limit: limits.concurrent_jobs.unwrap_or_default(),
                retry_after_seconds: queue.retry_after_seconds(),
            };
            self.allowances.enter(*owner, limits.concurrent_jobs, pixel_steps).ok_or(JobsError::LimitReached(too_many))
        };
        let Some(limit) = limits.megapixel_steps_per_day else { return enter() };
        let _turn = self.allowances.day_turn.lock().await;
        let now = self.clock.now();
        let today = Day::of(now);
        // In this order: a job that ends in between counts twice for a moment, rather than not at all.
        let promised = self.allowances.promised_pixel_steps(*owner);
        let work = self.store.work_by_day(*owner, today).await?;
        // Today only: if the clock was ahead, there may be usage of future days.
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
}
