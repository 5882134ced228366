//! What is asked of the service, and what becomes of it.

use std::time::Duration;

use super::{JobReport, JobService, RepeatKey};
use crate::domain::format::OutputFormat;
use crate::domain::ids::KeyId;
use crate::domain::limits::KeyLimits;
use crate::domain::priority::Priority;
use crate::domain::spec::GenerateSpec;
use crate::queue::CancelCause;

/// A job that is asked for.
#[derive(Debug)]
pub struct Submission {
    /// The key that asks.
    pub owner: KeyId,
    /// The bounds of that key, and its priority.
    pub limits: KeyLimits,
    /// What is drawn.
    pub spec: GenerateSpec,
    /// How the image is encoded.
    pub output_format: OutputFormat,
    /// Its place among the owner's jobs.
    pub priority: Priority,
    /// For how long somebody wants the image; after that the job fails.
    pub deadline: Option<Duration>,
    /// Where the client may ask again: by what the repetition is known.
    pub repeat_key: Option<RepeatKey>,
}

/// What became of a [`Submission`].
pub enum Submitted {
    /// A new job.
    New(AcceptedJob),
    /// The job of the same request that came before.
    Earlier(JobReport),
}

/// A job that was just accepted. Dropped before [`AcceptedJob::keep`], it is cancelled: whoever asked for it has left.
#[must_use = "a job that is not kept is cancelled"]
pub struct AcceptedJob {
    service: JobService,
    report: JobReport,
    is_kept: bool,
}

impl AcceptedJob {
    pub(super) fn new(service: JobService, report: JobReport, is_kept: bool) -> Self {
        Self { service, report, is_kept }
    }

    /// The job as it was accepted.
    #[must_use]
    pub fn report(&self) -> &JobReport {
        &self.report
    }

    /// Lets the job go on by itself.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for AcceptedJob {
    fn drop(&mut self) {
        if !self.is_kept {
            let job = &self.report.job;
            self.service.0.cancel(&job.request.model, job.id, CancelCause::Disconnect);
        }
    }
}
