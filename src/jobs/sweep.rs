//! Forgets finished jobs and their pictures when their time is over, or when the pictures take too much of the disk.

use std::sync::{Arc, Weak};

use super::service::Inner;
use super::store::EndedJob;
use super::{JobsError, idempotency};
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};

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
            Ok(jobs) => tracing::info!(jobs, "forgot jobs or pictures whose time was over"),
            Err(error) => tracing::warn!(%error, "old jobs could not be forgotten"),
        }
    }
}

/// One sweep; returns how many jobs were forgotten or lost their picture.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Result<usize, JobsError> {
    let now = inner.clock.now();
    inner.store.delete_repeat_keys(idempotency::cutoff(now)).await?;
    inner.store.delete_work_before(Day::of(now).before(USAGE_DAYS_KEPT)).await?;
    let outdated = forget_outdated(inner).await?;
    let surplus = forget_surplus(inner).await?;
    Ok(outdated + surplus + shed_pictures(inner).await?)
}

/// Jobs whose time is over.
async fn forget_outdated(inner: &Inner) -> Result<usize, JobsError> {
    let cutoff = inner.clock.now() - inner.settings.results_retention;
    let mut forgotten = 0;
    for _ in 0..BATCHES_MAX {
        let batch = inner.store.ended_before(cutoff, BATCH_JOBS).await?;
        forget_all(inner, &batch).await?;
        forgotten += batch.len();
        if batch.len() < BATCH_JOBS as usize {
            break;
        }
    }
    Ok(forgotten)
}

/// Jobs beyond what one owner may leave behind: failed and cancelled ones cost little, but not nothing.
async fn forget_surplus(inner: &Inner) -> Result<usize, JobsError> {
    let kept = inner.settings.ended_jobs_per_owner_max;
    let mut forgotten = 0;
    for _ in 0..BATCHES_MAX {
        let batch = inner.store.beyond_share(kept, BATCH_JOBS).await?;
        forget_all(inner, &batch).await?;
        forgotten += batch.len();
        if batch.len() < BATCH_JOBS as usize {
            break;
        }
    }
    Ok(forgotten)
}

/// The oldest pictures, while all together take too much of the disk. Their jobs stay, and say that it is gone.
async fn shed_pictures(inner: &Inner) -> Result<usize, JobsError> {
    let mut bytes = inner.store.result_bytes().await?;
    let mut shed = 0;
    for _ in 0..BATCHES_MAX {
        if bytes <= inner.settings.results_bytes_max {
            break;
        }
        for job in inner.store.with_pictures(BATCH_JOBS).await? {
            if bytes <= inner.settings.results_bytes_max {
                break;
            }
            remove_picture(inner, &job).await?;
            inner.store.note_picture_gone(&job.row_id).await?;
            bytes = bytes.saturating_sub(job.result_bytes);
            shed += 1;
        }
    }
    Ok(shed)
}

async fn forget_all(inner: &Inner, jobs: &[EndedJob]) -> Result<(), JobsError> {
    for job in jobs {
        forget(inner, job).await?;
    }
    Ok(())
}

async fn forget(inner: &Inner, job: &EndedJob) -> Result<(), JobsError> {
    // The file first: a row without a file is cleared by the next sweep, a file without a row never.
    remove_picture(inner, job).await?;
    inner.store.delete(&job.row_id).await
}

async fn remove_picture(inner: &Inner, job: &EndedJob) -> Result<(), JobsError> {
    let Some((id, format)) = job.file else { return Ok(()) };
    let files = inner.files.clone();
    tokio::task::spawn_blocking(move || files.remove(id, format)).await.map_err(JobsError::storage)??;
    Ok(())
}
