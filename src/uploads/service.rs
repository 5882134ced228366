//! Receives, lists, finds and removes uploads.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::Instrument as _;

use super::arrival::{Arrival, Arriving, given_up};
use super::error::UploadError;
use super::files::{UploadFiles, Written};
use super::id::UploadId;
use super::store::{StoredUpload, Taken, UploadStore};
use super::{Upload, UploadLimits};
use crate::auth::KeyService;
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::KeyId;
use crate::domain::pace::{Moment, Pace};
use crate::store::Store;

/// Parts of the uploads.
pub struct UploadParts {
    /// The database.
    pub store: Store,
    /// The keys: the uploads of a revoked one go.
    pub keys: KeyService,
    /// The folder of the files; created when the first one arrives.
    pub folder: PathBuf,
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
    clock: Arc<dyn Clock>,
    pace: Pace,
    limits: UploadLimits,
    arriving: Arc<Arriving>,
    /// Held while a file and its row come or go, so that no other change comes between the two.
    pub(super) turn: Mutex<()>,
}

impl Uploads {
    /// The uploads in a database and a folder, without what a crash has left. Nothing else may use the folder.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn start(parts: UploadParts) -> Result<Self, UploadError> {
        let UploadParts { store, keys, folder, clock, limits } = parts;
        let (store, files) = (UploadStore::new(store), UploadFiles::new(folder));
        let last = store.last().await?.unwrap_or_else(|| clock.now());
        let pace = Pace::new(last, clock.now(), clock.uptime());
        let (arriving, turn) = (Arc::default(), Mutex::default());
        let uploads = Self(Arc::new(Inner { store, keys, files, clock, pace, limits, arriving, turn }));
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

    /// Keeps a file that has arrived. It is on the disk and in the database when this returns. One that is there already is kept
    /// for as long as a new one.
    ///
    /// # Errors
    /// [`UploadError::Rejected`], [`UploadError::OwnerFull`], [`UploadError::Full`], or when the disk or the database fails.
    pub async fn add(&self, arrival: Arrival) -> Result<Upload, UploadError> {
        let uploads = self.clone();
        // A task of its own: a client that hangs up must not stop it between the file and its row.
        let adding = tokio::spawn(async move { uploads.enter(arrival).await }.in_current_span());
        adding.await.map_err(io::Error::other)?
    }

    async fn enter(&self, arrival: Arrival) -> Result<Upload, UploadError> {
        let Arrival { owner, part, place: _place } = arrival;
        let part = part.ok_or_else(given_up)?;
        let written = spawn_blocking(move || part.finish()).await.map_err(io::Error::other)??;
        let _turn = self.0.turn.lock().await;
        // One file at a time is in memory.
        let inspecting = spawn_blocking(move || written.inspect().map(|header| (written, header)));
        let (written, header) = inspecting.await.map_err(io::Error::other)??;
        let moment = self.0.moment();
        if self.0.store.find(owner, &written.id, OffsetDateTime::UNIX_EPOCH).await?.is_none() {
            self.0.check_room(owner, written.bytes, moment).await?;
        }
        let stored_at = to_the_millisecond(moment);
        let stored = StoredUpload { id: written.id.clone(), bytes: written.bytes, header, stored_at };
        self.0.name(owner, written).await?;
        // A crash between these two leaves a file without a row, which the next start removes.
        if let Err(error) = self.0.store.put(owner, &stored).await {
            self.0.remove_unless_known(owner, &stored.id).await;
            return Err(error);
        }
        Ok(self.0.shown(stored))
    }

    /// An owner's uploads, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, owner: KeyId) -> Result<Vec<Upload>, UploadError> {
        let stored = self.0.store.of(owner, self.0.cutoff()).await?;
        Ok(stored.into_iter().map(|upload| self.0.shown(upload)).collect())
    }

    /// The file of an owner's upload. `None` if there is no such upload. It may go at any time after that.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file(&self, owner: KeyId, id: &str) -> Result<Option<PathBuf>, UploadError> {
        let Ok(id) = id.parse() else { return Ok(None) };
        let found = self.0.store.find(owner, &id, self.0.cutoff()).await?;
        Ok(found.map(|_| self.0.files.path(owner, &id)))
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

    fn moment(&self) -> OffsetDateTime {
        self.look().now
    }

    fn retention(&self) -> Duration {
        Duration::try_from(self.limits.retention).unwrap_or(Duration::MAX)
    }

    /// What arrived at this moment or before has expired.
    pub(super) fn cutoff(&self) -> OffsetDateTime {
        self.moment().checked_sub(self.retention()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn shown(&self, stored: StoredUpload) -> Upload {
        let StoredUpload { id, bytes, header, stored_at } = stored;
        let expires_at = stored_at.checked_add(self.retention()).unwrap_or(stored_at);
        Upload { id, bytes, width: header.width, height: header.height, format: header.format, expires_at }
    }

    /// Refuses one more upload if there is no room for it.
    async fn check_room(&self, owner: KeyId, bytes: u64, now: OffsetDateTime) -> Result<(), UploadError> {
        let UploadLimits { owner_uploads_max, owner_bytes_max, bytes_max, .. } = self.limits;
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

    async fn name(&self, owner: KeyId, written: Written) -> io::Result<()> {
        let files = self.files.clone();
        spawn_blocking(move || files.name(owner, &written)).await.map_err(io::Error::other)?
    }

    /// Removes a file whose row could not be written, unless it was there before.
    async fn remove_unless_known(&self, owner: KeyId, id: &UploadId) {
        if let Ok(None) = self.store.find(owner, id, OffsetDateTime::UNIX_EPOCH).await {
            self.remove_file(owner, id).await;
        }
    }

    /// Removes an upload; whether it was there.
    pub(super) async fn remove(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        let _turn = self.turn.lock().await;
        self.remove_in_turn(owner, id).await
    }

    pub(super) async fn remove_in_turn(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        // The row first: a file without a row is out of use, and removed later.
        let was_there = self.store.delete(owner, id).await?;
        if was_there {
            self.remove_file(owner, id).await;
        }
        Ok(was_there)
    }

    pub(super) async fn remove_file(&self, owner: KeyId, id: &UploadId) {
        let (files, of) = (self.files.clone(), id.clone());
        let removed = spawn_blocking(move || files.remove(owner, &of)).await;
        if let Err(error) = removed.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            tracing::warn!(%error, %owner, %id, "the file of a removed upload is left");
        }
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
