//! A job in the queue, and what is published of it while an engine holds it.

use std::sync::Arc;
use std::time::Instant;

use tracing::Span;

use super::cost::{CostModel, WorkScale};
use super::drafts::Drafts;
use super::event::{EventSender, JobFailure, QueueEvent};
use super::planner::Urgency;
use super::{CancelCause, Terms};
use crate::domain::ids::{JobId, KeyId};
use crate::domain::owner_counts::OwnerHold;
use crate::domain::spec::GenerateSpec;
use crate::telemetry::metrics;

/// A job in the queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) spec: GenerateSpec,
    pub(super) terms: Terms,
    pub(super) arrived: Instant,
    pub(super) events: EventSender,
    /// Those that a reader wants of it.
    pub(super) drafts: Drafts,
    /// How often it was restarted to free memory for others.
    pub(super) restarts: u32,
    /// How often an engine failed while working on this job.
    pub(super) engine_failures: u32,
    /// The job's span for logs.
    pub(super) span: Span,
    pub(super) _hold: Arc<OwnerHold>,
}

impl Entry {
    pub(super) fn fail(self, code: &'static str, reason: impl Into<String>) {
        self.events.end(QueueEvent::Failed(JobFailure { code, reason: reason.into() }));
    }

    pub(super) fn end_late(self) {
        metrics::job_canceled(CancelCause::Deadline.as_str());
        self.fail(JobFailure::DEADLINE_PASSED, "it was not generated before its deadline");
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.terms.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// What the shared queue knows of an image that an engine holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ActiveJob {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) terms: Terms,
    pub(super) arrived: Instant,
    pub(super) step_tokens: usize,
    pub(super) step_work: f64,
    pub(super) steps_left: u32,
    /// Whether images of its request are still to be encoded.
    pub(super) is_encoding: bool,
    pub(super) is_suspect: bool,
}

impl ActiveJob {
    pub(super) fn new(entry: &Entry, scale: WorkScale) -> Self {
        Self {
            id: entry.id,
            owner: entry.owner,
            terms: entry.terms,
            arrived: entry.arrived,
            step_tokens: entry.spec.step_tokens(),
            step_work: scale.step_work(&entry.spec),
            steps_left: entry.spec.steps(),
            is_encoding: entry.spec.given_images().next().is_some(),
            is_suspect: entry.terms.is_suspect || entry.engine_failures > 0,
        }
    }

    pub(super) fn left_seconds(&self, costs: &CostModel) -> f64 {
        f64::from(self.steps_left) * costs.step_seconds(self.step_work) + costs.finish_seconds(self.step_work)
    }

    pub(super) fn urgency(&self, epoch: Instant, costs: &CostModel) -> Urgency {
        let seconds = |moment: Instant| moment.saturating_duration_since(epoch).as_secs_f64();
        Urgency {
            priority: self.terms.priority,
            arrived_seconds: seconds(self.arrived),
            deadline_seconds: self.terms.deadline.map(seconds),
            left_seconds: self.left_seconds(costs),
        }
    }
}
