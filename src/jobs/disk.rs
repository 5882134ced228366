//! Bringing images to the disk. One that is not taken now is offered again for a while: what was drawn is worth waiting
//! for, and its job keeps its place meanwhile, so that no more are drawn than can be waited for. Where the disk is full the
//! oldest images go first.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::service::Inner;
use super::store::EndedCursor;
use super::sweep::{BATCH_JOBS, BATCHES_MAX, remove_image};
use super::{JobService, JobsError};
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

/// Wait before an image is offered a second time; doubled before each further try, up to the longest.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// How often images are removed at most only to see whether the disk takes something. Whoever asks for that asks again
/// and again, and what fills the disk may be none of ours.
const PROBE_ROOM_INTERVAL: Duration = Duration::from_secs(10);
/// What is made room for when an image does not find any: so many times what it needs.
const ROOM_FACTOR: u64 = 2;
/// What a look at the disk needs room for.
const PROBE_ROOM_BYTES: u64 = 256 * 1024;

/// Held while room is made, with the moment of the last time that it was for a look only.
#[derive(Debug, Default)]
pub(super) struct RoomTurn(tokio::sync::Mutex<Option<Instant>>);

impl JobService {
    /// Proves that the folder of results takes images.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_results(&self) -> Result<(), JobsError> {
        let Err(error) = self.0.probe_results().await else { return Ok(()) };
        // Images that come would make room for themselves, but none come to a worker that is not ready.
        if is_full(&error) && self.0.make_room_for_probe().await > 0 {
            return Ok(self.0.probe_results().await?);
        }
        Err(error.into())
    }
}

impl Inner {
    /// Stores an image.
    ///
    /// # Errors
    /// The last one, when the disk has not taken it for too long, or the service was closed meanwhile.
    pub(super) async fn store_image(&self, id: JobId, format: OutputFormat, bytes: Vec<u8>) -> io::Result<()> {
        let bytes = Arc::new(bytes);
        let (offered_at, mut delay, mut is_told) = (Instant::now(), RETRY_DELAY, false);
        let mut closed = self.closed.subscribe();
        loop {
            let (files, offered) = (self.files.clone(), Arc::clone(&bytes));
            let written = tokio::task::spawn_blocking(move || files.write(id, format, &offered)).await;
            let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) else { return Ok(()) };
            if offered_at.elapsed() >= self.settings.storage_patience || self.is_closed() {
                return Err(error);
            }
            if !is_told {
                tracing::warn!(job = %id, %error, "the disk does not take an image now; trying on");
                is_told = true;
            }
            if is_full(&error) && self.make_room(ROOM_FACTOR * bytes.len() as u64).await > 0 {
                continue;
            }
            drop(tokio::time::timeout(delay, closed.wait_for(|is_closed| *is_closed)).await);
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    async fn probe_results(&self) -> io::Result<()> {
        let files = self.files.clone();
        let probed = tokio::task::spawn_blocking(move || files.probe()).await;
        probed.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    async fn make_room(&self, bytes: u64) -> u64 {
        let _turn = self.room_turn.0.lock().await;
        self.shed_oldest(bytes).await
    }

    async fn make_room_for_probe(&self) -> u64 {
        let mut last = self.room_turn.0.lock().await;
        if last.is_some_and(|moment| moment.elapsed() < PROBE_ROOM_INTERVAL) {
            return 0;
        }
        *last = Some(Instant::now());
        self.shed_oldest(PROBE_ROOM_BYTES).await
    }

    /// Removes the oldest images until that has given `bytes` back; returns how many it has. Their jobs stay, and say
    /// that the image is gone.
    async fn shed_oldest(&self, bytes: u64) -> u64 {
        let (mut freed, mut shed, mut cursor) = (0, 0, EndedCursor::START);
        for _ in 0..BATCHES_MAX {
            let batch = match self.store.with_images(&cursor, BATCH_JOBS).await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::warn!(?error, "it cannot be seen which images could make room");
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
                // The database may be on the same disk. What it does not take now, a later time will have it take: the
                // job is still among those with images.
                if let Err(error) = self.store.note_image_gone(&job.row_id).await {
                    tracing::warn!(row_id = job.row_id, ?error, "it was not written down that an image is gone");
                }
            }
            if freed >= bytes {
                break;
            }
        }
        if shed > 0 {
            tracing::warn!(images = shed, bytes = freed, "the disk is full, and the oldest images have made room");
        }
        freed
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
