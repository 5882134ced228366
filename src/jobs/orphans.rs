//! Orphaned images: left by restoring a backup of the database, or by a crash between writing the image and its row.
//! They are not reachable, and no limit counts them. Only the disk is searched: others may have files in a bucket.

use std::collections::HashSet;
use std::time::Duration;

use super::JobsError;
use super::state::Inner;
use crate::domain::ids::JobId;

/// Younger files may belong to a job that is just ending.
const AGE_MIN: Duration = Duration::from_hours(1);

/// Removes them as far as possible.
pub(super) async fn remove(inner: &Inner) {
    match remove_all(inner).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "removed images without a job"),
        Err(error) => tracing::warn!(?error, "searching for images without a job failed"),
    }
}

async fn remove_all(inner: &Inner) -> Result<usize, JobsError> {
    let files = inner.files.clone();
    let opened = tokio::task::spawn_blocking(move || files.old_images(AGE_MIN)).await;
    let mut images = opened.map_err(JobsError::storage)??;
    let mut removed = 0;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let page = images.next_page();
            (images, page)
        });
        let (rest, page) = read.await.map_err(JobsError::storage)?;
        images = rest;
        let Some(page) = page else { return Ok(removed) };
        // Read before the rows: a job that ends in between is then found by its row.
        let unfinished: HashSet<JobId> = inner.live().keys().copied().collect();
        let ids: Vec<JobId> = page.iter().map(|(id, _)| *id).collect();
        let known = inner.store.images_of(&ids).await?;
        for (id, format) in page {
            if unfinished.contains(&id) || known.contains(&(id, format)) {
                continue;
            }
            match inner.remove_file(id, format).await {
                Ok(_) => removed += 1,
                Err(error) => tracing::warn!(job = %id, %error, "an image without a job cannot be removed"),
            }
        }
    }
}
