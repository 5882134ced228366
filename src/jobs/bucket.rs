//! The bucket of images as the job service sees it: whether it takes images, and what waits for it on the disk.
//!
//! Only writes decide whether it does: a file that is missing, or a read that is refused, says nothing of that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::recent_images::RecentImages;
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;
use crate::objects::{Objects, ObjectsError};
use crate::telemetry::metrics;

/// A file takes whole blocks of the disk, and so counts: many small images are bounded as well.
const BLOCK_BYTES: u64 = 4096;

/// A bucket for finished images.
#[derive(Debug, Clone)]
pub struct ResultBucket {
    /// The bucket.
    pub objects: Objects,
    /// How much disk space images may take that wait for it.
    pub waiting_bytes_max: u64,
    /// For how long a link to an image leads to the bucket itself. `None`: the images are answered from here.
    pub redirect_life: Option<Duration>,
}

/// The number and the size of the images in the folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) images: u64,
    /// In whole blocks.
    pub(super) bytes: u64,
}

impl Waiting {
    pub(super) fn add(&mut self, bytes: u64) {
        self.images += 1;
        self.bytes = self.bytes.saturating_add(in_blocks(bytes));
    }
}

/// The bucket, and its state.
pub(super) struct Bucket {
    settings: ResultBucket,
    is_down: AtomicBool,
    images: AtomicU64,
    bytes: AtomicU64,
    /// Of the images that wait, how many it refuses while it accepts other files.
    refused: AtomicU64,
    recent: RecentImages,
}

impl Bucket {
    pub(super) fn new(settings: ResultBucket, waiting: Waiting) -> Self {
        let (images, bytes) = (AtomicU64::new(waiting.images), AtomicU64::new(waiting.bytes));
        let (is_down, refused) = (AtomicBool::new(false), AtomicU64::new(0));
        let bucket = Self { settings, is_down, images, bytes, refused, recent: RecentImages::default() };
        bucket.tell();
        bucket
    }

    /// Whether it did not accept the last image.
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting { images: self.images.load(Ordering::Acquire), bytes: self.bytes.load(Ordering::Acquire) }
    }

    /// Whether no further image may wait.
    pub(super) fn is_full(&self) -> bool {
        self.waiting().bytes.saturating_add(BLOCK_BYTES) > self.settings.waiting_bytes_max
    }

    /// Writes an image. After an error it is down, unless it refused this image and accepts other files: a proxy before it
    /// may have a limit for their size.
    pub(super) async fn put(&self, id: JobId, format: OutputFormat, bytes: &[u8]) -> Result<(), ObjectsError> {
        let outcome = self.settings.objects.put(&name_of(id, format), bytes, format.content_type()).await;
        if let Err(error @ ObjectsError::Refused(_)) = &outcome
            && self.check().await.is_ok()
        {
            tracing::error!(job = %id, %error, "the bucket accepts other files, but not this image; it stays on the disk");
            return outcome;
        }
        self.noted(outcome)
    }

    /// Notes how many of the images that wait it refuses, while it accepts other files.
    pub(super) fn note_refused(&self, images: usize) {
        self.refused.store(images as u64, Ordering::Release);
    }

    /// How many of the images that wait it refuses, while it accepts other files.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Acquire)
    }

    /// Finds out whether it accepts images.
    pub(super) async fn check(&self) -> Result<(), ObjectsError> {
        self.noted(self.settings.objects.check().await)
    }

    /// Keeps an image that is in the bucket in memory for a while.
    pub(super) fn keep_in_memory(&self, id: JobId, format: OutputFormat, bytes: &Arc<Vec<u8>>) {
        self.recent.keep((id, format), Arc::clone(bytes));
    }

    pub(super) async fn get(&self, id: JobId, format: OutputFormat) -> Result<Vec<u8>, ObjectsError> {
        if let Some(bytes) = self.recent.get((id, format)) {
            return Ok(bytes.to_vec());
        }
        self.settings.objects.get(&name_of(id, format)).await
    }

    pub(super) async fn delete(&self, id: JobId, format: OutputFormat) -> Result<(), ObjectsError> {
        self.recent.forget((id, format));
        self.settings.objects.delete(&name_of(id, format)).await
    }

    /// A link to an image in the bucket, if links lead there. `None` also when none can be made: then the image is answered
    /// from here.
    pub(super) async fn link(&self, id: JobId, format: OutputFormat) -> Option<String> {
        let signed = self.settings.objects.signed_url(&name_of(id, format), self.settings.redirect_life?).await;
        signed.inspect_err(|error| tracing::warn!(job = %id, %error, "no link to an image in the bucket")).ok()
    }

    /// Whether links lead to it.
    pub(super) fn has_links(&self) -> bool {
        self.settings.redirect_life.is_some()
    }

    /// Takes the disk space of an image that is to wait.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
        let (size, max) = (in_blocks(bytes), self.settings.waiting_bytes_max);
        let add = |taken: u64| taken.checked_add(size).filter(|sum| *sum <= max);
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_err() {
            return Err(io::Error::other("the images that wait for the bucket take all the disk space that they may"));
        }
        self.images.fetch_add(1, Ordering::AcqRel);
        self.tell();
        Ok(())
    }

    /// Gives back the disk space of an image that was removed, or not written.
    pub(super) fn release(&self, bytes: u64) {
        let take = |counter: &AtomicU64, amount: u64| {
            let rest = |count: u64| Some(count.saturating_sub(amount));
            // It never fails: there is always a rest.
            let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest);
        };
        take(&self.bytes, in_blocks(bytes));
        take(&self.images, 1);
        self.tell();
    }

    /// Takes over what the folder has. Images that come or go meanwhile are counted right the next time.
    pub(super) fn recount(&self, waiting: Waiting) {
        self.images.store(waiting.images, Ordering::Release);
        self.bytes.store(waiting.bytes, Ordering::Release);
        self.tell();
    }

    /// Notes whether it accepts images, and logs a change.
    fn noted(&self, outcome: Result<(), ObjectsError>) -> Result<(), ObjectsError> {
        let was_down = self.is_down.swap(outcome.is_err(), Ordering::AcqRel);
        match &outcome {
            Err(error) if !was_down => {
                tracing::error!(%error, "the bucket accepts no images; they wait on the disk");
            }
            Ok(()) if was_down => {
                tracing::info!(waiting = self.waiting().images, "the bucket accepts images again");
            }
            _ => {}
        }
        self.tell();
        outcome
    }

    fn tell(&self) {
        let Waiting { images, bytes } = self.waiting();
        metrics::bucket_state(!self.is_down(), images, bytes);
    }
}

/// Names an image in the bucket. The id is a random one: no other worker has it.
fn name_of(id: JobId, format: OutputFormat) -> String {
    format!("results/{id}.{}", format.extension())
}

fn in_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(waiting_bytes_max: u64) -> Bucket {
        let objects = Objects::in_memory();
        Bucket::new(ResultBucket { objects, waiting_bytes_max, redirect_life: None }, Waiting::default())
    }

    #[test]
    fn images_wait_within_a_bound_in_whole_blocks() {
        let bucket = bucket(3 * BLOCK_BYTES);
        for bytes in [1, BLOCK_BYTES, BLOCK_BYTES - 1] {
            assert!(!bucket.is_full());
            bucket.reserve(bytes).expect("room");
        }
        assert_eq!(bucket.waiting(), Waiting { images: 3, bytes: 3 * BLOCK_BYTES });
        assert!(bucket.is_full());
        bucket.reserve(1).expect_err("no room");
        bucket.release(1);
        bucket.reserve(BLOCK_BYTES + 1).expect_err("room for one block");
        bucket.reserve(2).expect("room again");
        bucket.recount(Waiting { images: 1, bytes: BLOCK_BYTES });
        bucket.release(2);
        bucket.release(2);
        assert_eq!(bucket.waiting(), Waiting::default(), "never below nothing");
    }

    #[tokio::test]
    async fn a_missing_image_does_not_mean_that_it_is_down() {
        let bucket = bucket(BLOCK_BYTES);
        let id = JobId::generate();
        assert_eq!(bucket.get(id, OutputFormat::Png).await, Err(ObjectsError::Missing));
        assert!(!bucket.is_down());
        bucket.put(id, OutputFormat::Png, b"image").await.expect("written");
        assert_eq!(bucket.get(id, OutputFormat::Png).await.as_deref(), Ok(&b"image"[..]));
        assert_eq!(
            bucket.get(id, OutputFormat::Webp).await,
            Err(ObjectsError::Missing),
            "another format is another file"
        );
        assert_eq!(bucket.link(id, OutputFormat::Png).await, None);
    }
}
