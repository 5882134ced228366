//! Whether new jobs could be stored lately. The write probe writes something else, so it may succeed where inserting
//! jobs fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// This many failures in a row are no coincidence.
const FAILURES_MAX: u32 = 3;
/// How long failures count: without new jobs nothing else would show a recovery. A worker must be healthy five seconds
/// after the disk is.
const FAILURE_COUNTS: Duration = Duration::from_secs(3);

/// Outcome of the last inserts.
#[derive(Debug, Default)]
pub(super) struct Inserts(Mutex<Option<Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    in_a_row: u32,
    last: Instant,
}

impl Inserts {
    fn lock(&self) -> MutexGuard<'_, Option<Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, succeeded: bool, now: Instant) {
        let mut failures = self.lock();
        let before = failures.map_or(0, |failures| failures.in_a_row);
        *failures = (!succeeded).then_some(Failures { in_a_row: before.saturating_add(1), last: now });
    }

    /// Whether the last inserts failed recently.
    pub(super) fn fail(&self, now: Instant) -> bool {
        let failures = *self.lock();
        failures.is_some_and(|Failures { in_a_row, last }| {
            in_a_row >= FAILURES_MAX && now.saturating_duration_since(last) < FAILURE_COUNTS
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_failures_in_a_row_count_for_a_while() {
        let (inserts, now) = (Inserts::default(), Instant::now());
        for (succeeded, fail) in [
            (false, false),
            (false, false),
            (true, false),
            (false, false),
            (false, false),
            (false, true),
            (false, true),
        ] {
            inserts.note(succeeded, now);
            assert_eq!(inserts.fail(now), fail);
        }
        assert!(inserts.fail(now + FAILURE_COUNTS / 2) && !inserts.fail(now + FAILURE_COUNTS));
        // One more failure makes them count again.
        inserts.note(false, now + FAILURE_COUNTS);
        assert!(inserts.fail(now + FAILURE_COUNTS));
        inserts.note(true, now + FAILURE_COUNTS);
        assert!(!inserts.fail(now + FAILURE_COUNTS));
    }
}
