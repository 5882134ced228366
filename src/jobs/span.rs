//! The span of a job, from its acceptance to its end: what is logged about it stands in it, and the steps that an engine
//! does for it follow from it. Never holds a prompt or a key.
//!
//! At level `debug`: where nobody listens at that level, it costs the look at one number.

use tracing::{Span, debug_span};

use super::Job;

/// The span of a job that was just accepted. It outlives the request that it came with, so it is no part of that
/// request's span, and follows from it instead.
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
    // Within the request's span: so the log says which request a job came with.
    tracing::debug!(job = %job.id, "accepted");
    span
}
