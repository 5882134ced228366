//! Launches stored jobs: submits them to their queue, and starts their recorders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::allowance::Allowance;
use super::recorder::{self, Recorder};
use super::state::{Inner, Live, LiveJob};
use super::{Job, JobTerms, span};
use crate::domain::spec::GenerateSpec;
use crate::queue::{Reservation, Terms};

/// What running a stored job takes.
pub(super) struct JobToRun {
    pub(super) spec: GenerateSpec,
    pub(super) reservation: Reservation,
    pub(super) allowance: Allowance,
    /// See [`Terms::is_suspect`].
    pub(super) is_suspect: bool,
}

impl Inner {
    /// Submits a stored job to its queue, and starts its recorder.
    pub(super) fn hand_over(self: &Arc<Self>, job: &Job, to_run: JobToRun) {
        let JobToRun { spec, reservation, allowance, is_suspect } = to_run;
        let (live, receiver) = watch::channel(Live::default());
        self.unfinished.send_modify(|count| *count += 1);
        let cost = spec.cost();
        let provenance = recorder::provenance(self, &spec);
        let overlay = spec.overlay().cloned();
        let span = span::of(job);
        let terms = Terms { is_suspect, ..self.queue_terms(&job.terms) };
        let events = reservation.within(span.clone()).submit(job.id, spec, terms);
        let (previews, model) = (events.previews(), job.request.model.clone());
        self.live().insert(job.id, LiveJob { progress: receiver, previews, owner: job.owner, model: model.clone() });
        let Job { id, owner, output_format, created_at, terms, .. } = *job;
        let age = (self.clock.now() - created_at).max(time::Duration::ZERO);
        // Not by the wall clock, which can be set while the job runs.
        let accepted_at = self.clock.uptime() - age;
        let deadline = terms.deadline_at.map(|deadline| accepted_at + (deadline - created_at));
        let format = output_format;
        let project = allowance.project();
        let recorder =
            Recorder { id, owner, project, model, cost, format, provenance, overlay, accepted_at, deadline, live };
        let inner = Arc::clone(self);
        let recording = async move {
            recorder.run(&inner, events).await;
            drop(allowance);
            inner.live().remove(&id);
            inner.unfinished.send_modify(|count| *count -= 1);
        };
        tokio::spawn(recording.instrument(span));
    }

    /// The terms on the queue's clock.
    fn queue_terms(&self, terms: &JobTerms) -> Terms {
        let left = terms.deadline_at.map(|deadline| deadline - self.clock.now());
        // A deadline that passed while the worker was down passes now.
        let deadline = left.map(|left| Instant::now() + Duration::try_from(left).unwrap_or_default());
        Terms { priority: terms.priority, owner_priority: terms.owner_priority, deadline, is_suspect: false }
    }
}
