//! Forgets finished jobs and their pictures when their time is over, or when the pictures take too much of the disk.

use std::sync::{Arc, Weak};

use super::service::Inner;
use super::store::EndedJob;
use super::{JobsError, idempotency};

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
    let now = inner.clock.now();
    let cutoff = now - inner.settings.results_retention;
    inner.store.delete_repeat_keys(idempotency::cutoff(now)).await?;
    let mut forgotten = 0;
    for _ in 0..BATCHES_MAX {
        let batch = inner.store.ended_before(cutoff, BATCH_JOBS).await?;
        for job in &batch {
            forget(inner, job).await?;
        }
        forgotten += batch.len();
        if batch.len() < BATCH_JOBS as usize {
            break;
        }
    }
    let mut bytes = inner.store.result_bytes().await?;
    for _ in 0..BATCHES_MAX {
        if bytes <= inner.settings.results_bytes_max {
            break;
        }
        for job in inner.store.ended_before(now, BATCH_JOBS).await? {
            if bytes <= inner.settings.results_bytes_max {
                break;
            }
            forget(inner, &job).await?;
            bytes = bytes.saturating_sub(job.result_bytes);
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

async fn forget(inner: &Inner, job: &EndedJob) -> Result<(), JobsError> {
    // The file first: a row without a file is cleared by the next sweep, a file without a row never.
    let (files, id, format) = (inner.files.clone(), job.id, job.output_format);
    tokio::task::spawn_blocking(move || files.remove(id, format)).await.map_err(JobsError::storage)??;
    inner.store.delete(id).await
}
