//! The span of a step: it serves many jobs, so it is part of none and follows from each of theirs.
//!
//! At level `debug`, as the jobs' own: where that level is off, this costs nothing.

use tracing::{Span, debug_span};

use super::Worker;
use crate::domain::ids::JobId;
use crate::queue::planner::Reason;

impl Worker {
    pub(super) fn step_span(&self, ids: &[JobId], reason: Reason) -> Span {
        let served = || ids.iter().filter_map(|id| self.running.get(id)).map(|running| &running.entry);
        let span = debug_span!(
            parent: None,
            "step",
            model = %self.settings.model,
            engine = self.engine,
            images = ids.len(),
            tokens = served().map(|entry| entry.spec.step_tokens()).sum::<usize>(),
            reason = reason.as_str()
        );
        if !span.is_disabled() {
            for entry in served() {
                span.follows_from(&entry.span);
            }
        }
        span
    }
}
