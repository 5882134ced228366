//! Admission of submissions: the earlier job of a repeated request, the owner's limits, and room in the queue.

use super::allowance::{Allowance, LimitReached};
use super::idempotency::{self, RepeatKey};
use super::state::Inner;
use super::{Job, JobsError, Submission};
use crate::domain::budget::{Budget, BudgetHolder, BudgetLevel};
use crate::domain::ids::KeyId;
use crate::domain::limits::{GroupLimits, LimitHolder};
use crate::domain::month::Month;
use crate::domain::usage::{Day, DayRange};
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
            self.allowances.enter(*owner, limits, pixel_steps).map_err(|(holder, limit)| {
                let retry_after_seconds = queue.retry_after_seconds();
                JobsError::LimitReached(LimitReached::ConcurrentJobs { holder, limit, retry_after_seconds })
            })
        };
        let is_metered = |limits: &GroupLimits| limits.megapixel_steps_per_day.is_some() || limits.budget.is_some();
        if !limits.all(*owner).any(|(.., limits)| is_metered(&limits)) {
            return enter();
        }
        let _turn = self.allowances.day_turn.lock().await;
        for (whose, holder, limits) in limits.all(*owner) {
            if let Some(limit) = limits.megapixel_steps_per_day {
                self.check_day((whose, holder), limit, pixel_steps).await?;
            }
            if let Some(budget) = limits.budget {
                self.check_budget((whose, holder), budget, pixel_steps).await?;
            }
        }
        enter()
    }

    /// Refuses a job for which the day's allowance does not suffice.
    async fn check_day(
        &self,
        (whose, holder): (LimitHolder, BudgetHolder),
        limit: u32,
        pixel_steps: u64,
    ) -> Result<(), JobsError> {
        let now = self.clock.now();
        let today = Day::of(now);
        // In this order: a job that ends in between counts twice for a moment, rather than not at all.
        let promised = self.allowances.promised_pixel_steps(holder);
        // Today only: if the clock was ahead, there may be usage of future days.
        let done = self.store.work_of(holder, DayRange { from: today, to: today }).await?.pixel_steps;
        let left = (u64::from(limit) * PIXELS_PER_MEGAPIXEL).saturating_sub(done.saturating_add(promised));
        if pixel_steps <= left {
            return Ok(());
        }
        Err(JobsError::LimitReached(LimitReached::MegapixelSteps {
            holder: whose,
            limit,
            left: left / PIXELS_PER_MEGAPIXEL,
            needed: pixel_steps.div_ceil(PIXELS_PER_MEGAPIXEL),
            retry_after_seconds: today.seconds_left(now),
        }))
    }

    /// Refuses a job for which the month's budget does not suffice. What a job costs in megapixel-steps is known before it
    /// runs, its engine time is not: a price per second counts for jobs that have ended.
    async fn check_budget(
        &self,
        (whose, holder): (LimitHolder, BudgetHolder),
        budget: Budget,
        pixel_steps: u64,
    ) -> Result<(), JobsError> {
        let now = self.clock.now();
        let month = Month::of(now);
        let promised = self.allowances.promised_pixel_steps(holder);
        let days = DayRange { from: month.first(), to: month.end().before(1) };
        let mut work = self.store.work_of(holder, days).await?;
        let prices = self.settings.prices.as_ref();
        let is_used_up = budget.used_by(&work, prices).is_some_and(|used| used.has_reached(BudgetLevel::Exhausted));
        work.pixel_steps = work.pixel_steps.saturating_add(promised).saturating_add(pixel_steps);
        let suffices = budget.used_by(&work, prices).is_none_or(|used| used.used <= used.total);
        if suffices && !is_used_up {
            return Ok(());
        }
        self.charged.note_refusal(holder);
        let retry_after_seconds = month.seconds_left(now);
        Err(JobsError::LimitReached(LimitReached::Budget { holder: whose, budget, retry_after_seconds }))
    }
}
