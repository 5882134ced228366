//! The span of a job, from acceptance to end. Its log lines go under it, and the steps that serve it follow from it.
//! Never holds a prompt or a key.
//!
//! At level `debug`: where that level is off, it costs one comparison.

use tracing::{Span, debug_span};

use super::Job;

/// The span of a newly accepted job. It outlives its request, so it is not part of the request's span but follows from
/// it.
pub(super) fn of(job: &Job) -> Span {
    let request = &job.request;
    let span = debug_span!(
        parent: None,
        "job",
        job = %job.id,
        model = %request.model,
        width = request.width,
        height = request.height,
        steps = request.steps
    );
    let origin = Span::current();
    span.follows_from(&origin);
    // Logged under the request's span, so that the log connects request and job.
    tracing::debug!(job = %job.id, "accepted");
    span
}
