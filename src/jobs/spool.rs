//! Moves images that wait on the disk to the bucket, the oldest first, and finds out when the bucket accepts images again.
//!
//! An image leaves the disk when the bucket has confirmed it. If the process dies in between, the next start finds the file,
//! sends the same bytes again, and the bucket has them already.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::JobsError;
use super::bucket::Bucket;
use super::results::Survey;
use super::state::Inner;
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;
use crate::objects::ObjectsError;

/// Images of one look into the folder.
const PAGE_IMAGES: usize = 1000;
/// Images that are sent at the same time.
const UPLOADS_MAX: usize = 4;
/// Time between two looks whether images wait.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Wait after a failure; doubled after each further one, up to the longest.
const RETRY_DELAY: Duration = Duration::from_millis(250);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// Time between checks of a bucket that nothing is sent to, and before an image that it refused is offered again.
const CHECK_INTERVAL: Duration = Duration::from_mins(5);

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    /// When the bucket was last seen to accept images, or not to.
    checked_at: Option<Instant>,
    /// Images that the bucket refused while it accepted other files. No more than wait.
    refused: BTreeSet<JobId>,
    /// When all of those were last offered.
    offered_at: Option<Instant>,
}

/// Moves images until the service is closed or dropped.
pub(super) async fn run(service: Weak<Inner>) {
    let (mut delay, mut memory) = (RETRY_DELAY, Memory::default());
    loop {
        let Some(inner) = service.upgrade().filter(|inner| !inner.is_closed()) else { return };
        let Some(bucket) = inner.bucket.clone() else { return };
        let outcome = look(&inner, &bucket, &mut memory).await;
        drop((inner, bucket));
        let pause = match outcome {
            Ok(()) => {
                delay = RETRY_DELAY;
                LOOK_INTERVAL
            }
            Err(error) => {
                tracing::debug!(?error, "images wait for the bucket");
                let pause = delay;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Moves what waits. If that is nothing, checks the bucket from time to time, and always while it is down.
async fn look(inner: &Inner, bucket: &Bucket, memory: &mut Memory) -> Result<(), JobsError> {
    let mut moved = 0;
    if bucket.waiting().images > 0 || !memory.refused.is_empty() {
        if is_due(memory.offered_at) {
            memory.offered_at = Some(Instant::now());
            memory.refused.clear();
        }
        moved = move_images(inner, bucket, &mut memory.refused).await?;
    }
    bucket.note_refused(memory.refused.len());
    if moved > 0 {
        memory.checked_at = Some(Instant::now());
        return Ok(());
    }
    if bucket.is_down() || is_due(memory.checked_at) {
        memory.checked_at = Some(Instant::now());
        bucket.check().await.map_err(JobsError::storage)?;
    }
    Ok(())
}

fn is_due(last: Option<Instant>) -> bool {
    last.is_none_or(|moment| moment.elapsed() >= CHECK_INTERVAL)
}

/// Moves all images whose jobs have ended, but for those that were refused; returns how many. An image that is refused joins
/// them, and one that does not wait any more leaves them.
///
/// # Errors
/// The first one that says that the bucket is down: the other images would fail alike, and stay on the disk.
async fn move_images(inner: &Inner, bucket: &Bucket, refused: &mut BTreeSet<JobId>) -> Result<usize, JobsError> {
    let (mut moved, mut after) = (0, None);
    let mut still_refused = BTreeSet::new();
    loop {
        let Survey { all, page } = survey(inner, after).await?;
        if after.is_none() {
            bucket.recount(all);
        }
        let Some((last, _)) = page.last().copied() else {
            *refused = still_refused;
            return Ok(moved);
        };
        after = Some(last);
        let ids: Vec<JobId> = page.iter().map(|(id, _)| *id).collect();
        still_refused.extend(ids.iter().filter(|id| refused.contains(id)));
        // Others belong to jobs that are just ending, or to none.
        let known = inner.store.images_of(&ids).await?;
        let is_offered = |image: &(JobId, OutputFormat)| known.contains(image) && !refused.contains(&image.0);
        let offered: Vec<(JobId, OutputFormat)> = page.into_iter().filter(is_offered).collect();
        let mut rest = offered.as_slice();
        while !rest.is_empty() && !inner.is_closed() {
            // While it is down, one is enough to find out.
            let count = if bucket.is_down() { 1 } else { UPLOADS_MAX.min(rest.len()) };
            let (now, later) = rest.split_at(count);
            let outcomes = join_all(now.iter().map(|image| move_image(inner, bucket, *image))).await;
            for (outcome, (id, _)) in outcomes.into_iter().zip(now) {
                match outcome {
                    Ok(()) => moved += 1,
                    Err(ObjectsError::Refused(_)) if !bucket.is_down() => {
                        still_refused.insert(*id);
                    }
                    Err(error) => return Err(JobsError::storage(error)),
                }
            }
            rest = later;
        }
        if inner.is_closed() {
            return Ok(moved);
        }
    }
}

async fn survey(inner: &Inner, after: Option<JobId>) -> Result<Survey, JobsError> {
    let files = inner.files.clone();
    let read = tokio::task::spawn_blocking(move || files.survey(after, PAGE_IMAGES)).await;
    Ok(read.map_err(JobsError::storage)??)
}

/// Moves an image. One that cannot be read stays, and keeps no other.
async fn move_image(inner: &Inner, bucket: &Bucket, (id, format): (JobId, OutputFormat)) -> Result<(), ObjectsError> {
    let bytes = match tokio::fs::read(inner.files.path(id, format)).await {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::error!(job = %id, %error, "an image that waits for the bucket cannot be read");
            }
            return Ok(());
        }
    };
    bucket.put(id, format, &bytes).await?;
    match inner.remove_file(id, format).await {
        Ok(0) => {
            // Its job was deleted meanwhile: the file first, then the image in the bucket, which may not have been there yet.
            if let Err(error) = bucket.delete(id, format).await {
                tracing::warn!(job = %id, %error, "the image of a deleted job stays in the bucket");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(job = %id, %error, "an image is in the bucket, and stays on the disk as well"),
    }
    Ok(())
}
