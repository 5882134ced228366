//! Moves images that wait on the disk to the bucket, the oldest first, and finds out when the bucket accepts images again.
//!
//! An image leaves the disk when the bucket has confirmed it. If the process dies in between, the next start finds the file,
//! sends the same bytes again, and the bucket has them already.

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
/// Time between checks of a bucket that nothing is sent to.
const CHECK_INTERVAL: Duration = Duration::from_mins(5);

/// Moves images until the service is closed or dropped.
pub(super) async fn run(service: Weak<Inner>) {
    let (mut delay, mut checked_at) = (RETRY_DELAY, None);
    loop {
        let Some(inner) = service.upgrade().filter(|inner| !inner.is_closed()) else { return };
        let Some(bucket) = inner.bucket.clone() else { return };
        let outcome = look(&inner, &bucket, &mut checked_at).await;
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
async fn look(inner: &Inner, bucket: &Bucket, checked_at: &mut Option<Instant>) -> Result<(), JobsError> {
    let moved = if bucket.waiting().images > 0 { move_images(inner, bucket).await? } else { 0 };
    if moved > 0 {
        *checked_at = Some(Instant::now());
        return Ok(());
    }
    if bucket.is_down() || checked_at.is_none_or(|moment| moment.elapsed() >= CHECK_INTERVAL) {
        *checked_at = Some(Instant::now());
        bucket.check().await.map_err(JobsError::storage)?;
    }
    Ok(())
}

/// Moves all images whose jobs have ended; returns how many there were.
///
/// # Errors
/// The first one: the others would fail alike, and stay on the disk.
async fn move_images(inner: &Inner, bucket: &Bucket) -> Result<usize, JobsError> {
    let (mut moved, mut after) = (0, None);
    loop {
        let Survey { all, page } = survey(inner, after).await?;
        if after.is_none() {
            bucket.recount(all);
        }
        let Some((last, _)) = page.last().copied() else { return Ok(moved) };
        after = Some(last);
        let ids: Vec<JobId> = page.iter().map(|(id, _)| *id).collect();
        // Others belong to jobs that are just ending, or to none.
        let known = inner.store.images_of(&ids).await?;
        let ended: Vec<(JobId, OutputFormat)> = page.into_iter().filter(|image| known.contains(image)).collect();
        let mut rest = ended.as_slice();
        while !rest.is_empty() && !inner.is_closed() {
            // While it is down, one is enough to find out.
            let count = if bucket.is_down() { 1 } else { UPLOADS_MAX.min(rest.len()) };
            let (now, later) = rest.split_at(count);
            for outcome in join_all(now.iter().map(|image| move_image(inner, bucket, *image))).await {
                outcome.map_err(JobsError::storage)?;
                moved += 1;
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
