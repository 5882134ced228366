//! Deletes ended jobs and their images when their retention is over, or when images take too much disk space.
//!
//! An image that cannot be removed is skipped until the next sweep: one file must not keep all others. Its job's row stays, so
//! that nothing is forgotten.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use time::OffsetDateTime;

use super::state::Inner;
use super::store::{EndedCursor, EndedJob};
use super::{JobsError, idempotency, orphans};
use crate::domain::pace::Moment;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};

/// Jobs per batch.
pub(super) const BATCH_JOBS: u32 = 100;
/// Batches of deleted jobs in one sweep, so that a sweep ends; the next one continues.
pub(super) const BATCHES_MAX: u32 = 50;
/// Batches in one sweep, including those in which nothing could be deleted.
const LOOKS_MAX: u32 = 10 * BATCHES_MAX;
/// Images that are removed at the same time: from a bucket, each takes a request.
const REMOVALS_MAX: usize = 8;
/// Time between searches for orphaned files.
const ORPHANS_INTERVAL: Duration = Duration::from_hours(24);

/// Sweeps at the configured interval, until the service is dropped.
pub(super) async fn run(service: Weak<Inner>) {
    let mut orphans_removed_at: Option<Instant> = None;
    loop {
        let Some(inner) = service.upgrade() else { return };
        if orphans_removed_at.is_none_or(|moment| moment.elapsed() >= ORPHANS_INTERVAL) {
            orphans_removed_at = Some(Instant::now());
            orphans::remove(&inner).await;
        }
        let interval = inner.settings.sweep_interval;
        drop(inner);
        tokio::time::sleep(interval).await;
        let Some(inner) = service.upgrade() else { return };
        if let Ok(jobs @ 1..) = sweep(&inner).await {
            tracing::info!(jobs, "deleted jobs or images whose retention was over");
        }
    }
}

/// Outcome of the parts of a sweep.
#[derive(Default)]
struct Swept {
    jobs: usize,
    error: Option<JobsError>,
}

impl Swept {
    /// Notes the outcome of one part: a failure must not stop the others.
    fn note(&mut self, part: &'static str, outcome: Result<usize, JobsError>) {
        match outcome {
            Ok(jobs) => self.jobs += jobs,
            Err(error) => {
                tracing::warn!(part, ?error, "a part of the sweep failed");
                self.error.get_or_insert(error);
            }
        }
    }
}

/// One sweep; returns how many jobs were deleted or lost their image.
///
/// # Errors
/// The first one, after all other parts were done.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Result<usize, JobsError> {
    // Deletion is final: a clock that leaps ahead for a minute must not delete everything.
    let Moment { now, future_begins, .. } = inner.paced();
    let mut swept = Swept::default();
    if let Some(future_begins) = future_begins {
        swept.note("future dates", inner.store.pull_back(future_begins, now).await.map(|()| 0));
    }
    let repeat_keys = inner.store.delete_repeat_keys(idempotency::cutoff(now)).await;
    swept.note("idempotency keys", repeat_keys.map(|()| 0));
    let work = inner.store.delete_work_before(Day::of(now).before(USAGE_DAYS_KEPT)).await;
    swept.note("work by day", work.map(|()| 0));
    let cutoff = now - inner.settings.results_retention;
    swept.note("jobs past their retention", forget(inner, Forgettable::EndedBefore(cutoff)).await);
    // Failed and canceled jobs cost little, but not nothing.
    let kept = inner.settings.ended_jobs_per_owner_max;
    swept.note("jobs beyond an owner's share", forget(inner, Forgettable::BeyondShare { kept }).await);
    swept.note("images beyond the share of the disk", shed_images(inner).await);
    if swept.jobs > 0 {
        inner.log_has_deleted.store(true, Ordering::Release);
    }
    if inner.log_has_deleted.load(Ordering::Acquire) {
        // What is deleted must leave the write-ahead log as well; while something is reading, with a later sweep.
        let truncated = inner.store.truncate_log().await;
        if let Ok(true) = truncated {
            inner.log_has_deleted.store(false, Ordering::Release);
        }
        swept.note("the write-ahead log", truncated.map(|_| 0));
    }
    swept.error.map_or(Ok(swept.jobs), Err)
}

/// Which jobs to delete.
#[derive(Clone, Copy)]
enum Forgettable {
    EndedBefore(OffsetDateTime),
    /// Older than the `kept` newest ones of their owner.
    BeyondShare {
        kept: u32,
    },
}

async fn forget(inner: &Inner, which: Forgettable) -> Result<usize, JobsError> {
    let (mut forgotten, mut cursor) = (0, EndedCursor::START);
    'batches: for _ in 0..LOOKS_MAX {
        let batch = match which {
            Forgettable::EndedBefore(cutoff) => inner.store.ended_before(cutoff, &cursor, BATCH_JOBS).await?,
            Forgettable::BeyondShare { kept } => inner.store.beyond_share(kept, &cursor, BATCH_JOBS).await?,
        };
        let mut failed = 0;
        for group in batch.chunks(REMOVALS_MAX) {
            if is_bucket_down(inner) {
                break 'batches;
            }
            // The file first: a row without a file is deleted by the next sweep, a file without a row much later.
            let removals = join_all(group.iter().map(|job| remove_image(inner, job))).await;
            for (job, removed) in group.iter().zip(removals) {
                if removed.is_ok() {
                    inner.store.delete(&job.row_id).await?;
                    forgotten += 1;
                } else {
                    failed += 1;
                }
            }
        }
        if inner.bucket.is_some() && failed > 0 && failed == batch.len() {
            // It refuses them all, probably: no request for each of thousands.
            break;
        }
        let Some(last) = batch.last().filter(|_| batch.len() >= BATCH_JOBS as usize) else { break };
        if forgotten >= (BATCHES_MAX * BATCH_JOBS) as usize {
            break;
        }
        cursor = last.cursor();
    }
    Ok(forgotten)
}

/// Removes the oldest images while all of them take too much disk space. Their jobs stay, without image.
async fn shed_images(inner: &Inner) -> Result<usize, JobsError> {
    let mut bytes = inner.store.result_bytes().await?;
    let (mut shed, mut cursor) = (0, EndedCursor::START);
    for _ in 0..LOOKS_MAX {
        if bytes <= inner.settings.results_bytes_max || shed >= (BATCHES_MAX * BATCH_JOBS) as usize {
            break;
        }
        let batch = inner.store.with_images(&cursor, BATCH_JOBS).await?;
        let Some(last) = batch.last() else { break };
        cursor = last.cursor();
        for job in batch {
            if bytes <= inner.settings.results_bytes_max {
                break;
            }
            if is_bucket_down(inner) {
                return Ok(shed);
            }
            if remove_image(inner, &job).await.is_ok() {
                inner.store.note_image_gone(&job.row_id).await?;
                bytes = bytes.saturating_sub(job.result_bytes);
                shed += 1;
            }
        }
    }
    Ok(shed)
}

/// Whether images cannot be removed now: a later sweep does it, instead of this one failing at each of them.
fn is_bucket_down(inner: &Inner) -> bool {
    inner.bucket.as_ref().is_some_and(|bucket| bucket.is_down())
}

/// Removes a job's image wherever it is, and returns the bytes freed on the disk. A failure is logged.
pub(super) async fn remove_image(inner: &Inner, job: &EndedJob) -> Result<u64, JobsError> {
    let Some((id, format)) = job.file else { return Ok(0) };
    let refuse = |error: &dyn std::fmt::Display| {
        tracing::warn!(job = %id, %error, "an expired image cannot be removed");
    };
    // The disk first: an image that is just on its way to the bucket is removed there by whoever brings it.
    let freed = inner.remove_file(id, format).await.inspect_err(|error| refuse(error))?;
    if let Some(bucket) = &inner.bucket {
        bucket.delete(id, format).await.inspect_err(|error| refuse(error)).map_err(JobsError::storage)?;
    }
    Ok(freed)
}
