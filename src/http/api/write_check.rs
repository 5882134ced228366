//! The last outcome of a check whether database and results folder accept writes.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// How long the outcome of a check is reused. Anyone may request it, and each check is a write that the disk must
/// confirm.
const FRESH: Duration = Duration::from_secs(1);

type Outcome = Result<(), &'static str>;

/// The last outcome of a write to database and disk, and its time. Requests during a check wait for its outcome.
#[derive(Default)]
pub(in crate::http) struct WriteCheck(Mutex<Option<(Instant, Outcome)>>);

impl WriteCheck {
    /// The last outcome while it is fresh, else that of `check`.
    pub(super) async fn outcome(&self, check: impl Future<Output = Outcome>) -> Outcome {
        let mut seen = self.0.lock().await;
        if let Some((at, outcome)) = *seen
            && at.elapsed() < FRESH
        {
            return outcome;
        }
        let outcome = check.await;
        *seen = Some((Instant::now(), outcome));
        outcome
    }
}
