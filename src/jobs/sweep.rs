//! Forgets finished jobs and their images when their time is over, or when the images take too much of the disk.
//!
//! What cannot be removed is passed over, and stays until it can be: one file must not keep all others.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::service::Inner;
use super::store::{EndedCursor, EndedJob};
use super::{JobsError, idempotency, orphans};
use crate::domain::pace::Moment;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};

/// Jobs looked at in one go.
pub(super) const BATCH_JOBS: u32 = 100;
/// Goes in one sweep in which something was forgotten, so that a sweep ends; the next one goes on.
pub(super) const BATCHES_MAX: u32 = 50;
/// Goes in one sweep in all, also those in which nothing could be.
const LOOKS_MAX: u32 = 10 * BATCHES_MAX;
/// How often is looked for files that no job has.
const ORPHANS_INTERVAL: Duration = Duration::from_hours(24);

/// Sweeps from time to time, until the service is gone.
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
            tracing::info!(jobs, "forgot jobs or images whose time was over");
        }
    }
}

/// What the parts of a sweep came to.
#[derive(Default)]
struct Swept {
    jobs: usize,
    error: Option<JobsError>,
}

impl Swept {
    /// One part has ended: a failure is no reason not to do the others.
    fn note(&mut self, part: &'static str, outcome: Result<usize, JobsError>) {
        match outcome {
            Ok(jobs) => self.jobs += jobs,
            Err(error) => {
                tracing::warn!(part, ?error, "a part of the sweep was not done");
                self.error.get_or_insert(error);
            }
        }
    }
}

/// One sweep; returns how many jobs were forgotten or lost their image.
///
/// # Errors
/// The first one, after everything else was done.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Result<usize, JobsError> {
    // What is forgotten is gone: a clock that leaps ahead for a minute must not take all there is.
    let Moment { now, future_begins, .. } = inner.paced();
    let mut swept = Swept::default();
    if let Some(future_begins) = future_begins {
        swept.note("what is of the future", inner.store.pull_back(future_begins, now).await.map(|()| 0));
    }
    let words = inner.store.delete_repeat_keys(idempotency::cutoff(now)).await;
    swept.note("words of requests", words.map(|()| 0));
    let work = inner.store.delete_work_before(Day::of(now).before(USAGE_DAYS_KEPT)).await;
    swept.note("work by day", work.map(|()| 0));
    let cutoff = now - inner.settings.results_retention;
    swept.note("jobs whose time is over", forget(inner, Forgettable::EndedBefore(cutoff)).await);
    // Failed and cancelled jobs cost little, but not nothing.
    let kept = inner.settings.ended_jobs_per_owner_max;
    swept.note("jobs beyond an owner's share", forget(inner, Forgettable::BeyondShare { kept }).await);
    swept.note("images beyond the share of the disk", shed_images(inner).await);
    if swept.jobs > 0 {
        // What is forgotten is to be gone from the write-ahead log as well.
        swept.note("the write-ahead log", inner.store.truncate_log().await.map(|()| 0));
    }
    swept.error.map_or(Ok(swept.jobs), Err)
}

/// Which jobs are to be forgotten.
#[derive(Clone, Copy)]
enum Forgettable {
    EndedBefore(OffsetDateTime),
    /// Older than the youngest so many ones of their owner.
    BeyondShare {
        kept: u32,
    },
}

async fn forget(inner: &Inner, which: Forgettable) -> Result<usize, JobsError> {
    let (mut forgotten, mut cursor) = (0, EndedCursor::START);
    for _ in 0..LOOKS_MAX {
        let batch = match which {
            Forgettable::EndedBefore(cutoff) => inner.store.ended_before(cutoff, &cursor, BATCH_JOBS).await?,
            Forgettable::BeyondShare { kept } => inner.store.beyond_share(kept, &cursor, BATCH_JOBS).await?,
        };
        for job in &batch {
            // The file first: a row without a file is cleared by the next sweep, a file without a row much later.
            if remove_image(inner, job).await.is_ok() {
                inner.store.delete(&job.row_id).await?;
                forgotten += 1;
            }
        }
        let Some(last) = batch.last().filter(|_| batch.len() >= BATCH_JOBS as usize) else { break };
        if forgotten >= (BATCHES_MAX * BATCH_JOBS) as usize {
            break;
        }
        cursor = last.cursor();
    }
    Ok(forgotten)
}

/// The oldest images, while all together take too much of the disk. Their jobs stay, and say that it is gone.
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
            if remove_image(inner, &job).await.is_ok() {
                inner.store.note_image_gone(&job.row_id).await?;
                bytes = bytes.saturating_sub(job.result_bytes);
                shed += 1;
            }
        }
    }
    Ok(shed)
}

/// Removes a job's image, and says how many bytes that gave back. What keeps it there is logged.
pub(super) async fn remove_image(inner: &Inner, job: &EndedJob) -> Result<u64, JobsError> {
    let Some((id, format)) = job.file else { return Ok(0) };
    let files = inner.files.clone();
    let removed = tokio::task::spawn_blocking(move || files.remove(id, format)).await.map_err(JobsError::storage)?;
    removed.map_err(|error| {
        tracing::warn!(job = %id, %error, "an image whose time is over cannot be removed");
        error.into()
    })
}
