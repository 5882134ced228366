//! Images that no job has: they come with a backup of the database that was restored, or with a crash between the
//! image and its row. Nobody can have them, and no bound counts them.

use std::collections::HashSet;
use std::time::Duration;

use super::JobsError;
use super::service::Inner;
use crate::domain::ids::JobId;

/// Younger ones may be about to become a job's.
const AGE_MIN: Duration = Duration::from_hours(1);

/// Removes them, as far as they can be.
pub(super) async fn remove(inner: &Inner) {
    match remove_all(inner).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(files, "removed images that no job has"),
        Err(error) => tracing::warn!(?error, "it cannot be seen which images no job has"),
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
        // Before the rows: a job that ends in between has its image by its row.
        let unfinished: HashSet<JobId> = inner.live().keys().copied().collect();
        let ids: Vec<JobId> = page.iter().map(|(id, _)| *id).collect();
        let known = inner.store.images_of(&ids).await?;
        for (id, format) in page {
            if unfinished.contains(&id) || known.contains(&(id, format)) {
                continue;
            }
            let files = inner.files.clone();
            match tokio::task::spawn_blocking(move || files.remove(id, format)).await.map_err(JobsError::storage)? {
                Ok(_) => removed += 1,
                Err(error) => tracing::warn!(job = %id, %error, "an image that no job has cannot be removed"),
            }
        }
    }
}
