//! A submission to the service, and its outcome.

use std::sync::Arc;
use std::time::Duration;

use super::state::Inner;
use super::{JobReport, RepeatKey};
use crate::domain::format::OutputFormat;
use crate::domain::ids::KeyId;
use crate::domain::limits::KeyLimits;
use crate::domain::priority::Priority;
use crate::domain::spec::GenerateSpec;
use crate::domain::webhook::JobWebhook;
use crate::queue::CancelCause;

/// A request for a job.
#[derive(Debug)]
pub struct Submission {
    /// The submitting key.
    pub owner: KeyId,
    /// That key's limits and priority.
    pub limits: KeyLimits,
    /// What to generate.
    pub spec: GenerateSpec,
    /// How the image is encoded.
    pub output_format: OutputFormat,
    /// Its order among the owner's jobs.
    pub priority: Priority,
    /// How long the image is of use; after that the job fails.
    pub deadline: Option<Duration>,
    /// The idempotency key, if the client sent one.
    pub repeat_key: Option<RepeatKey>,
    /// What the request says of webhooks; `None`: its owner's default.
    pub webhook: Option<JobWebhook>,
}

/// Outcome of a [`Submission`].
pub enum Submitted {
    /// A new job.
    New(AcceptedJob),
    /// The job of the same earlier request.
    Earlier(JobReport),
}

/// A newly accepted job. If dropped before [`AcceptedJob::keep`], it is canceled: the client has disconnected.
#[must_use = "a job that is not kept is canceled"]
pub struct AcceptedJob {
    state: Arc<Inner>,
    report: JobReport,
    is_kept: bool,
}

impl AcceptedJob {
    pub(super) fn new(state: Arc<Inner>, report: JobReport, is_kept: bool) -> Self {
        Self { state, report, is_kept }
    }

    /// The job as accepted.
    #[must_use]
    pub fn report(&self) -> &JobReport {
        &self.report
    }

    /// Lets the job run without its caller.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for AcceptedJob {
    fn drop(&mut self) {
        if !self.is_kept {
            let job = &self.report.job;
            self.state.cancel(&job.request.model, job.id, CancelCause::Disconnect);
        }
    }
}
