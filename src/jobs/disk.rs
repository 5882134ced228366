//! Stores images: in the bucket, if there is one and it accepts them, or else on disk. A failed write is retried for a while,
//! since the image is expensive; its job keeps its reservation meanwhile, so that no more images are generated than can wait.
//! If the disk is full, the oldest images are removed, unless they are in a bucket.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::Inner;
use super::store::EndedCursor;
use super::sweep::{BATCH_JOBS, BATCHES_MAX, remove_image};
use super::{JobService, JobsError};
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

/// Wait before the first retry; doubled before each further one, up to the longest.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// Shortest time between removals of images for a probe alone. Probes repeat, and the disk may be full of other files.
const PROBE_ROOM_INTERVAL: Duration = Duration::from_secs(10);
/// How much space is freed for an image, as a multiple of its size.
const ROOM_FACTOR: u64 = 2;
/// How much space is freed for a probe.
const PROBE_ROOM_BYTES: u64 = 256 * 1024;

impl JobService {
    /// Proves that images can be stored: that the results folder accepts them, or the bucket, or while that does not, that
    /// images can wait for it.
    ///
    /// # Errors
    /// When they cannot.
    pub async fn check_results(&self) -> Result<(), JobsError> {
        if let Some(bucket) = &self.0.bucket {
            if !bucket.is_down() {
                return Ok(());
            }
            if bucket.is_full() {
                return Err(JobsError::storage("the images that wait for the bucket take all the space that they may"));
            }
            return Ok(self.0.probe_results().await?);
        }
        let Err(error) = self.0.probe_results().await else { return Ok(()) };
        // A new image would free space for itself, but a worker that is not ready gets no jobs.
        if is_full(&error) && self.0.make_room_for_probe().await > 0 {
            return Ok(self.0.probe_results().await?);
        }
        Err(error.into())
    }

    /// What [`JobService::check_results`] found, in words for everyone.
    pub fn results_fault(&self) -> &'static str {
        match self.0.bucket {
            Some(_) => "the bucket does not accept images, and no more of them can wait on the disk",
            None => "the results folder does not accept images",
        }
    }

    /// What works less well than it should, in words for everyone: images wait because the bucket does not accept them.
    pub fn results_outage(&self) -> Option<String> {
        let bucket = self.0.bucket.as_ref()?;
        if bucket.is_down() {
            return Some(format!("the bucket does not accept images: {} wait on the disk", bucket.waiting().images));
        }
        let refused = bucket.refused();
        (refused > 0).then(|| format!("the bucket does not accept some of the images: {refused} wait on the disk"))
    }
}

impl Inner {
    /// Stores an image.
    ///
    /// # Errors
    /// The last one, when writing failed for too long, or the service was closed meanwhile.
    pub(super) async fn store_image(&self, id: JobId, format: OutputFormat, bytes: Vec<u8>) -> io::Result<()> {
        let bytes = Arc::new(bytes);
        let (offered_at, mut delay, mut is_told) = (Instant::now(), RETRY_DELAY, false);
        let mut closed = self.closed.subscribe();
        loop {
            if self.put_in_bucket(id, format, &bytes).await {
                return Ok(());
            }
            let Err(error) = self.write_file(id, format, &bytes).await else { return Ok(()) };
            if offered_at.elapsed() >= self.settings.storage_patience || self.is_closed() {
                return Err(error);
            }
            if !is_told {
                tracing::warn!(job = %id, %error, "an image cannot be stored; retrying");
                is_told = true;
            }
            if is_full(&error) && self.make_room(ROOM_FACTOR * bytes.len() as u64).await > 0 {
                continue;
            }
            drop(tokio::time::timeout(delay, closed.wait_for(|is_closed| *is_closed)).await);
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    /// Puts an image in the bucket, if there is one and it is not down; returns whether it is there.
    async fn put_in_bucket(&self, id: JobId, format: OutputFormat, bytes: &Arc<Vec<u8>>) -> bool {
        let Some(bucket) = self.bucket.as_ref().filter(|bucket| !bucket.is_down()) else { return false };
        if bucket.put(id, format, bytes).await.is_err() {
            return false;
        }
        bucket.keep_in_memory(id, format, bytes);
        // A file that an earlier attempt has left must not replace it.
        let removed = self.remove_file(id, format).await;
        removed.inspect_err(|error| tracing::warn!(job = %id, %error, "an old image stays on the disk")).is_ok()
    }

    async fn write_file(&self, id: JobId, format: OutputFormat, bytes: &Arc<Vec<u8>>) -> io::Result<()> {
        let size = bytes.len() as u64;
        if let Some(bucket) = &self.bucket {
            bucket.reserve(size)?;
        }
        let (files, offered) = (self.files.clone(), Arc::clone(bytes));
        let written = tokio::task::spawn_blocking(move || files.write(id, format, &offered)).await;
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        if let (Err(_), Some(bucket)) = (&written, &self.bucket) {
            bucket.release(size);
        }
        written
    }

    /// Removes an image from the disk, and returns the bytes freed: none, if there was none.
    pub(super) async fn remove_file(&self, id: JobId, format: OutputFormat) -> io::Result<u64> {
        let files = self.files.clone();
        let removed = tokio::task::spawn_blocking(move || files.remove(id, format)).await;
        let freed = removed.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
        if let Some(bucket) = self.bucket.as_ref().filter(|_| freed > 0) {
            bucket.release(freed);
        }
        Ok(freed)
    }

    async fn probe_results(&self) -> io::Result<()> {
        let files = self.files.clone();
        let probed = tokio::task::spawn_blocking(move || files.probe()).await;
        probed.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    async fn make_room(&self, bytes: u64) -> u64 {
        let _turn = self.probe_freed_at.lock().await;
        self.shed_oldest(bytes).await
    }

    async fn make_room_for_probe(&self) -> u64 {
        let mut last = self.probe_freed_at.lock().await;
        if last.is_some_and(|moment| moment.elapsed() < PROBE_ROOM_INTERVAL) {
            return 0;
        }
        *last = Some(Instant::now());
        self.shed_oldest(PROBE_ROOM_BYTES).await
    }

    /// Removes the oldest images until `bytes` are freed; returns how many bytes were. Their jobs stay, without image.
    async fn shed_oldest(&self, bytes: u64) -> u64 {
        if self.bucket.is_some() {
            // Those are in the bucket, which frees nothing here, or wait for it, and would be lost.
            return 0;
        }
        let (mut freed, mut shed, mut cursor) = (0, 0, EndedCursor::START);
        for _ in 0..BATCHES_MAX {
            let batch = match self.store.with_images(&cursor, BATCH_JOBS).await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::warn!(?error, "the images to remove cannot be listed");
                    break;
                }
            };
            let Some(last) = batch.last() else { break };
            cursor = last.cursor();
            for job in batch {
                if freed >= bytes {
                    break;
                }
                let Ok(removed) = remove_image(self, &job).await else { continue };
                freed += removed;
                shed += 1;
                // The database may be on the same full disk. A later sweep updates the row: it still lists the image.
                if let Err(error) = self.store.note_image_gone(&job.row_id).await {
                    tracing::warn!(row_id = job.row_id, ?error, "the removal of an image was not recorded");
                }
            }
            if freed >= bytes {
                break;
            }
        }
        if shed > 0 {
            tracing::warn!(images = shed, bytes = freed, "the disk is full; the oldest images were removed");
        }
        freed
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
