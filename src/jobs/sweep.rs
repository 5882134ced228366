//! Forgets finished jobs and their pictures when their time is over.

use std::sync::{Arc, Weak};

use super::JobsError;
use super::service::Inner;

/// Jobs looked at in one go.
const BATCH_JOBS: u32 = 100;
/// Goes in one sweep, so that a sweep ends; the next one goes on.
const BATCHES_MAX: u32 = 50;

/// Sweeps from time to time, until the service is gone.
pub(super) async fn run(service: Weak<Inner>) {
    loop {
        let Some(interval) = service.upgrade().map(|inner| inner.settings.sweep_interval) else {
            return;
        };
        tokio::time::sleep(interval).await;
        let Some(inner) = service.upgrade() else {
            return;
        };
        match sweep(&inner).await {
            Ok(0) => {}
            Ok(jobs) => tracing::info!(jobs, "forgot jobs whose time was over"),
            Err(error) => tracing::warn!(%error, "old jobs could not be forgotten"),
        }
    }
}

/// One sweep; returns how many jobs were forgotten.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Result<usize, JobsError> {
    let cutoff = inner.clock.now() - inner.settings.results_retention;
    let mut forgotten = 0;
    for _ in 0..BATCHES_MAX {
        let batch = inner.store.ended_before(cutoff, BATCH_JOBS).await?;
        let is_last = batch.len() < BATCH_JOBS as usize;
        for (id, format) in batch {
            // The file first: a row without a file is cleared by the next sweep, a file without a row never.
            let files = inner.files.clone();
            tokio::task::spawn_blocking(move || files.remove(id, format))
                .await
                .map_err(JobsError::storage)??;
            inner.store.delete(id).await?;
            forgotten += 1;
        }
        if is_last {
            break;
        }
    }
    Ok(forgotten)
}
