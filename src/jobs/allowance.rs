//! Limits of an owner's and a project's concurrent jobs, daily usage and budget, and the memory bound of all owners' input images.
//!
//! A job counts from its acceptance: with all its steps while it is unfinished, then with the steps that were done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::input_images::{InputImages, InputImagesHold};
use crate::domain::budget::{Budget, BudgetHolder};
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::limits::{GroupLimits, KeyLimits, LimitHolder, ProjectTerms};
use crate::domain::spec::GenerateSpec;

/// The limit that refuses one more job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The owner, or its project, has as many concurrent jobs as allowed.
    #[error("the {holder} has as many concurrent jobs as allowed: {limit}")]
    ConcurrentJobs {
        /// Whose limit it is.
        holder: LimitHolder,
        /// The limit.
        limit: u32,
        /// When one of them is likely to end.
        retry_after_seconds: u64,
    },
    /// The day's allowance is too small.
    #[error("{left} of the {holder}'s {limit} megapixel-steps of the day are left, but the image takes {needed}")]
    MegapixelSteps {
        /// Whose limit it is.
        holder: LimitHolder,
        /// The day's allowance.
        limit: u32,
        /// What is left of it.
        left: u64,
        /// What the job would cost, rounded up.
        needed: u64,
        /// When the next day begins.
        retry_after_seconds: u64,
    },
    /// The rest of the month's budget does not suffice.
    #[error("the {holder}'s budget of {budget} for the month does not suffice")]
    Budget {
        /// Whose budget it is.
        holder: LimitHolder,
        /// The budget.
        budget: Budget,
        /// When the next month begins.
        retry_after_seconds: u64,
    },
}

/// Unfinished jobs of all owners.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    /// Owners and projects without a job have no entry, so the queues' sizes bound it.
    outstanding: Mutex<HashMap<BudgetHolder, Outstanding>>,
    /// Held while a daily allowance or a budget is checked, so that two jobs do not both get the last of it.
    pub(super) day_turn: tokio::sync::Mutex<()>,
    pub(super) input_images: Arc<InputImages>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Outstanding {
    jobs: u32,
    pixel_steps: u64,
}

/// One job's part of its owner's limits, and its project's, until it ends.
#[derive(Debug)]
pub(super) struct Allowance {
    all: Arc<Allowances>,
    owner: KeyId,
    project: Option<ProjectId>,
    pixel_steps: u64,
    /// Held for the job's images.
    pub(super) input_images: Option<InputImagesHold>,
}

impl Allowances {
    /// Pixel-steps of the unfinished jobs of an owner or a project.
    pub(super) fn promised_pixel_steps(&self, holder: BudgetHolder) -> u64 {
        self.outstanding().get(&holder).map_or(0, |own| own.pixel_steps)
    }

    fn outstanding(&self) -> MutexGuard<'_, HashMap<BudgetHolder, Outstanding>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more job, if the owner and its project have fewer than their limits.
    ///
    /// # Errors
    /// Whose limit is reached, and the limit.
    pub(super) fn enter(
        self: &Arc<Self>,
        owner: KeyId,
        limits: &KeyLimits,
        pixel_steps: u64,
    ) -> Result<Allowance, (LimitHolder, u32)> {
        let mut all = self.outstanding();
        for (whose, holder, limits) in limits.all(owner) {
            let jobs = all.get(&holder).map_or(0, |own| own.jobs);
            if let Some(jobs_max) = limits.concurrent_jobs.filter(|jobs_max| jobs >= *jobs_max) {
                return Err((whose, jobs_max));
            }
        }
        let project = limits.project.map(|project| project.id);
        let allowance = Allowance { all: Arc::clone(self), owner, project, pixel_steps, input_images: None };
        for holder in allowance.holders() {
            let own = all.entry(holder).or_default();
            own.jobs += 1;
            own.pixel_steps += pixel_steps;
        }
        Ok(allowance)
    }

    /// Counts a job accepted before a restart: its limits were checked then.
    pub(super) fn enter_again(
        self: &Arc<Self>,
        (owner, project): (KeyId, Option<ProjectId>),
        spec: &GenerateSpec,
    ) -> Allowance {
        let project = project.map(|id| ProjectTerms { id, limits: GroupLimits::default() });
        let unlimited = KeyLimits { project, ..KeyLimits::default() };
        let mut allowance = self.enter(owner, &unlimited, spec.pixel_steps()).expect("no limit");
        allowance.input_images = Some(self.input_images.enter_again(spec));
        allowance
    }
}

impl Allowance {
    /// The project that the job counts for.
    pub(super) fn project(&self) -> Option<ProjectId> {
        self.project
    }

    fn holders(&self) -> impl Iterator<Item = BudgetHolder> + use<> {
        std::iter::once(BudgetHolder::Key(self.owner)).chain(self.project.map(BudgetHolder::Project))
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let mut all = self.all.outstanding();
        for holder in self.holders() {
            if let Some(own) = all.get_mut(&holder) {
                own.jobs -= 1;
                own.pixel_steps -= self.pixel_steps;
                if own.jobs == 0 {
                    all.remove(&holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_most(concurrent_jobs: Option<u32>, project: Option<(ProjectId, u32)>) -> KeyLimits {
        let project = project.map(|(id, jobs)| ProjectTerms {
            id,
            limits: GroupLimits { concurrent_jobs: Some(jobs), ..GroupLimits::default() },
        });
        KeyLimits { concurrent_jobs, project, ..KeyLimits::default() }
    }

    #[test]
    fn an_allowance_is_given_back() {
        let all = Arc::new(Allowances::default());
        let (owner, other) = (KeyId::generate(), KeyId::generate());
        let of = |owner| all.outstanding().get(&BudgetHolder::Key(owner)).map(|own| (own.jobs, own.pixel_steps));
        let first = all.enter(owner, &at_most(Some(2), None), 5).expect("room");
        let second = all.enter(owner, &at_most(Some(2), None), 7).expect("room");
        assert_eq!(all.enter(owner, &at_most(Some(2), None), 1).err(), Some((LimitHolder::Key, 2)));
        let _other = all.enter(other, &at_most(Some(1), None), 1).expect("limits are per owner");
        let third = all.enter(owner, &at_most(None, None), 1).expect("no limit");
        assert_eq!(of(owner), Some((3, 13)));
        drop((first, second));
        assert_eq!(of(owner), Some((1, 1)));
        drop(third);
        assert_eq!(of(owner), None, "an owner without a job has no entry");
    }

    #[test]
    fn the_keys_of_a_project_share_its_limit() {
        let all = Arc::new(Allowances::default());
        let project = ProjectId::generate();
        let (one, two) = (KeyId::generate(), KeyId::generate());
        let limits = at_most(Some(2), Some((project, 2)));
        let first = all.enter(one, &limits, 5).expect("room");
        let _second = all.enter(two, &limits, 7).expect("room");
        assert_eq!(all.enter(two, &limits, 1).err(), Some((LimitHolder::Project, 2)));
        assert_eq!(all.promised_pixel_steps(BudgetHolder::Project(project)), 12);
        assert_eq!(all.promised_pixel_steps(BudgetHolder::Key(two)), 7, "a refusal counts nothing");
        drop(first);
        let _third = all.enter(two, &limits, 1).expect("room again");
        assert_eq!(all.promised_pixel_steps(BudgetHolder::Project(project)), 8);
    }
}
