//! Reports on jobs, for callers that may see them.

use std::time::Duration;

use super::state::Inner;
use super::store::ListedJobs;
use super::{Job, JobPage, JobReport, JobService, JobsError, ListQuery, PAGE_JOBS_MAX, Visibility};
use crate::domain::ids::JobId;
use crate::domain::job::JobStatus;

impl JobService {
    /// A visible job.
    ///
    /// # Errors
    /// [`JobsError::NotFound`] also for jobs that are not visible.
    pub async fn get(&self, visibility: impl Into<Visibility>, id: JobId) -> Result<JobReport, JobsError> {
        self.0.within(visibility.into(), id).await.map(|job| self.0.report(job))
    }

    /// Waits until the job has ended, but no longer than `wait_max`; then reports it either way.
    ///
    /// # Errors
    /// As [`JobService::get`].
    pub async fn wait(
        &self,
        visibility: impl Into<Visibility>,
        id: JobId,
        wait_max: Duration,
    ) -> Result<JobReport, JobsError> {
        let receiver = self.0.live().get(&id).map(|live| live.progress.clone());
        if let Some(mut live) = receiver {
            // The sender is dropped when the outcome is stored; only that ends this early.
            drop(tokio::time::timeout(wait_max, async { while live.changed().await.is_ok() {} }).await);
        }
        self.get(visibility, id).await
    }

    /// The visible jobs, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, visibility: impl Into<Visibility>, query: ListQuery) -> Result<JobPage, JobsError> {
        let jobs_max = query.jobs_max.clamp(1, PAGE_JOBS_MAX);
        let ListedJobs { jobs, next } = self.0.store.list(visibility.into(), ListQuery { jobs_max, ..query }).await?;
        Ok(JobPage { jobs: jobs.into_iter().map(|job| self.0.report(job)).collect(), next })
    }
}

impl Inner {
    pub(super) async fn within(&self, visibility: Visibility, id: JobId) -> Result<Job, JobsError> {
        let job = self.store.get(id).await?;
        if visibility.covers(job.owner) { Ok(job) } else { Err(JobsError::NotFound) }
    }

    pub(super) fn report(&self, job: Job) -> JobReport {
        let queue = self.queues.get(&job.request.model).filter(|_| !job.status.is_final());
        let standing = queue.and_then(|queue| queue.standing(job.id));
        let step = match job.status {
            JobStatus::Succeeded => job.request.steps_done(),
            _ => self.live().get(&job.id).map_or(0, |live| live.progress.borrow().step),
        };
        // A link expires no later than the image, whose retention begins when the job ends.
        let now = self.clock.now();
        let image_ends = job.finished_at.unwrap_or(now) + self.settings.results_retention;
        JobReport {
            step,
            queue_position: standing.map(|standing| standing.position),
            eta_seconds: standing.and_then(|standing| standing.eta_seconds),
            link: self.signer.sign(job.id, image_ends, now),
            job,
        }
    }
}
