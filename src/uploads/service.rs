//! The uploads of all keys: begun, kept, listed, found and removed.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;
use tracing::Instrument as _;

use super::arrival::{Arrival, Arriving};
use super::bucket::UploadBucket;
use super::error::UploadError;
use super::file::UploadFile;
use super::files::UploadFiles;
use super::id::UploadId;
use super::store::{FilePlace, StoredUpload, Taken, UploadStore};
use super::turns::FileTurns;
use super::{Upload, UploadLimits};
use crate::auth::KeyService;
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::KeyId;
use crate::domain::pace::{Moment, Pace};
use crate::objects::Objects;
use crate::store::Store;

/// Parts of the uploads.
pub struct UploadParts {
    /// The database.
    pub store: Store,
    /// The keys: the uploads of a revoked one go.
    pub keys: KeyService,
    /// The folder of the files; created when the first one arrives.
    pub folder: PathBuf,
    /// The bucket for files that arrive from now on. `None`: they stay in the folder.
    pub bucket: Option<Objects>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// How many there may be, and for how long.
    pub limits: UploadLimits,
}

/// The uploads of all keys. Clones share them.
#[derive(Clone)]
pub struct Uploads(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: UploadStore,
    pub(super) keys: KeyService,
    pub(super) files: UploadFiles,
    pub(super) bucket: Option<UploadBucket>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    limits: UploadLimits,
    arriving: Arc<Arriving>,
    /// Held while a file in the folder and its row come or go, or the row of one in the bucket comes, so that no other change
    /// comes between the two, and no other file takes the room. Nothing waits for a bucket meanwhile.
    pub(super) turn: Mutex<()>,
    /// Taken before it by whoever changes a single file.
    pub(super) file_turns: FileTurns,
}

impl Uploads {
    /// The uploads in a database and a folder, without what a crash has left. Nothing else may use the folder.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn start(parts: UploadParts) -> Result<Self, UploadError> {
        let UploadParts { store, keys, folder, bucket, clock, limits } = parts;
        let (store, files, bucket) = (UploadStore::new(store), UploadFiles::new(folder), bucket.map(UploadBucket::new));
        let last = store.last().await?.unwrap_or_else(|| clock.now());
        let pace = Pace::new(last, clock.now(), clock.uptime());
        let (arriving, turn, file_turns) = (Arc::default(), Mutex::default(), FileTurns::default());
        let inner = Inner { store, keys, files, bucket, clock, pace, limits, arriving, turn, file_turns };
        let uploads = Self(Arc::new(inner));
        match uploads.reconcile(true).await {
            // No reason not to serve.
            Err(UploadError::Disk(error)) => tracing::warn!(%error, "the folder of uploads cannot be read"),
            outcome => drop(outcome?),
        }
        Ok(uploads)
    }

    /// Begins a file of this owner.
    ///
    /// # Errors
    /// [`UploadError::Busy`], or when the disk fails.
    pub async fn begin(&self, owner: KeyId) -> Result<Arrival, UploadError> {
        let place = self.0.arriving.enter(owner).ok_or(UploadError::Busy)?;
        Arrival::begin(&self.0.files, owner, place).await
    }

    /// Keeps a file that has arrived. It is on the disk or in the bucket, and in the database, when this returns. One that is
    /// there already is kept for as long as a new one.
    ///
    /// # Errors
    /// [`UploadError::Rejected`], [`UploadError::OwnerFull`], [`UploadError::Full`], or when the disk, the bucket or the database
    /// fails.
    pub async fn add(&self, arrival: Arrival) -> Result<Upload, UploadError> {
        let inner = Arc::clone(&self.0);
        // A task of its own: a client that hangs up must not stop it between the file and its row.
        let adding = tokio::spawn(async move { inner.enter(arrival).await }.in_current_span());
        adding.await.map_err(io::Error::other)?
    }

    /// An owner's uploads, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, owner: KeyId) -> Result<Vec<Upload>, UploadError> {
        let stored = self.0.store.of(owner, self.0.cutoff()).await?;
        let reached = stored.into_iter().filter(|upload| self.0.can_reach(upload.place));
        Ok(reached.map(|upload| self.0.shown(upload)).collect())
    }

    /// The file of an owner's upload. `None` if there is no such upload, or it is in a bucket that is not configured any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file(&self, owner: KeyId, id: &str) -> Result<Option<UploadFile>, UploadError> {
        let Ok(id) = id.parse() else { return Ok(None) };
        let found = self.0.store.find(owner, &id, self.0.cutoff()).await?;
        Ok(found.and_then(|upload| self.0.file_of(owner, &upload)))
    }

    /// Removes an owner's upload.
    ///
    /// # Errors
    /// [`UploadError::NotFound`], or when the database fails.
    pub async fn remove(&self, owner: KeyId, id: UploadId) -> Result<(), UploadError> {
        let inner = Arc::clone(&self.0);
        // As in `add`.
        let removing = tokio::spawn(async move { inner.remove(owner, &id).await }.in_current_span());
        let was_there = removing.await.map_err(io::Error::other)??;
        if was_there { Ok(()) } else { Err(UploadError::NotFound) }
    }
}

impl Inner {
    /// The moment that retention goes by.
    pub(super) fn look(&self) -> Moment {
        self.pace.look(self.clock.now(), self.clock.uptime())
    }

    pub(super) fn moment(&self) -> OffsetDateTime {
        self.look().now
    }

    /// The date of an upload that arrives now, by the machine's clock: the moment that retention goes by is behind it for an hour
    /// after each start, and what arrives would expire too early. If the clock is wrong, the sweep corrects the date.
    pub(super) fn stored_now(&self) -> OffsetDateTime {
        to_the_millisecond(self.clock.now())
    }

    /// Whether files at this place can be read and removed.
    pub(super) fn can_reach(&self, place: FilePlace) -> bool {
        place == FilePlace::Folder || self.bucket.is_some()
    }

    fn file_of(&self, owner: KeyId, upload: &StoredUpload) -> Option<UploadFile> {
        match upload.place {
            FilePlace::Folder => Some(UploadFile::in_folder(self.files.path(owner, &upload.id))),
            FilePlace::Bucket => self.bucket.as_ref().map(|bucket| bucket.file(owner, upload)),
        }
    }

    fn retention(&self) -> Duration {
        Duration::try_from(self.limits.retention).unwrap_or(Duration::MAX)
    }

    /// What arrived at this moment or before has expired.
    pub(super) fn cutoff(&self) -> OffsetDateTime {
        self.moment().checked_sub(self.retention()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn shown(&self, stored: StoredUpload) -> Upload {
        let StoredUpload { id, bytes, header, stored_at, place: _ } = stored;
        let expires_at = stored_at.checked_add(self.retention()).unwrap_or(stored_at);
        Upload { id, bytes, width: header.width, height: header.height, format: header.format, expires_at }
    }

    /// Refuses one more upload if there is no room for it.
    pub(super) async fn check_room(&self, owner: KeyId, bytes: u64) -> Result<(), UploadError> {
        let UploadLimits { owner_uploads_max, owner_bytes_max, bytes_max, .. } = self.limits;
        let now = self.moment();
        let until = |taken: Taken| {
            let next = taken.oldest_at.and_then(|oldest| oldest.checked_add(self.retention())).unwrap_or(now);
            // The sweep follows within a minute.
            u64::try_from((next - now).whole_seconds()).unwrap_or_default() + 60
        };
        let own = self.store.taken(Some(owner)).await?;
        if own.uploads >= owner_uploads_max || own.bytes.saturating_add(bytes) > owner_bytes_max {
            return Err(UploadError::OwnerFull {
                uploads: own.uploads,
                bytes: own.bytes,
                uploads_max: owner_uploads_max,
                bytes_max: owner_bytes_max,
                retry_after_seconds: until(own),
            });
        }
        let all = self.store.taken(None).await?;
        if all.bytes.saturating_add(bytes) > bytes_max {
            return Err(UploadError::Full { retry_after_seconds: until(all) });
        }
        Ok(())
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
