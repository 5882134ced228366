//! Removes uploads that have expired or whose key is revoked, and in the folder files without a row, and rows without a file.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;

use super::error::UploadError;
use super::files::UploadFiles;
use super::id::UploadId;
use super::service::{Inner, Uploads};
use super::store::FilePlace;
use crate::auth::{KeyError, KeyState};
use crate::domain::ids::KeyId;

/// Time between sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// Time between searches for files without a row.
const RECONCILE_INTERVAL: Duration = Duration::from_hours(24);

/// Uploads that are removed in one batch.
const BATCH: u32 = 100;

/// Batches of a sweep, so that it ends; the next one continues.
const BATCHES_MAX: u32 = 50;

/// Files that are removed from a bucket at the same time.
const REMOVALS_MAX: usize = 8;

impl Uploads {
    /// Sweeps for ever.
    pub async fn keep(self) {
        let mut reconciled_at = Instant::now();
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            match self.sweep().await {
                Ok(0) => {}
                Ok(uploads) => tracing::info!(uploads, "removed uploads that had expired or whose key is revoked"),
                Err(error) => tracing::warn!(?error, "sweeping uploads failed"),
            }
            if reconciled_at.elapsed() >= RECONCILE_INTERVAL {
                reconciled_at = Instant::now();
                if let Err(error) = self.reconcile(false).await {
                    tracing::warn!(?error, "searching for files of uploads without a row failed");
                }
            }
        }
    }

    /// Removes what has expired, and what belongs to revoked keys; returns how many uploads.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sweep(&self) -> Result<usize, UploadError> {
        let moment = self.0.look();
        if let Some(future_begins) = moment.future_begins {
            self.0.store.pull_back(future_begins, moment.now).await?;
        }
        let mut removed = 0;
        for owner in self.0.store.owners().await? {
            let is_ended = match self.0.keys.get(owner).await {
                Ok(key) => key.state == KeyState::Revoked,
                Err(KeyError::NotFound(_)) => true,
                Err(error) => return Err(error.into()),
            };
            if is_ended {
                removed += self.0.give_up_all_of(owner).await?;
            }
        }
        for _ in 0..BATCHES_MAX {
            let expired = self.0.remove_expired().await?;
            removed += expired;
            if expired < BATCH as usize {
                break;
            }
        }
        Ok(removed + self.0.clear_bucket(None).await?)
    }

    /// Removes all uploads of an owner; returns how many. What the bucket does not remove now is out of use, and goes with a
    /// later sweep.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_all_of(&self, owner: KeyId) -> Result<usize, UploadError> {
        let removed = self.0.give_up_all_of(owner).await?;
        Ok(removed + self.0.clear_bucket(Some(owner)).await?)
    }

    /// Removes files in the folder without a row, and rows there without a file: a copy of the database has none. At a start
    /// nothing is arriving, and incomplete files go as well.
    pub(super) async fn reconcile(&self, is_start: bool) -> Result<usize, UploadError> {
        let inner = &self.0;
        let _turn = inner.turn.lock().await;
        let files = inner.files.clone();
        let finding = spawn_blocking(move || {
            let found = files.find()?;
            let parts = if is_start { UploadFiles::remove_parts(&found)? } else { 0 };
            io::Result::Ok((found.complete, parts))
        });
        let (complete, mut removed) = finding.await.map_err(io::Error::other)??;
        let there: HashSet<(KeyId, UploadId)> = complete.into_iter().collect();
        let mut known = BTreeSet::new();
        for (owner, id) in inner.store.in_folder().await? {
            match (owner.parse::<KeyId>(), id.parse::<UploadId>()) {
                (Ok(of), Ok(upload)) if there.contains(&(of, upload.clone())) => drop(known.insert((of, upload))),
                _ => inner.store.delete_as_stored(&owner, &id).await?,
            }
        }
        for (owner, id) in there.into_iter().filter(|file| !known.contains(file)) {
            inner.remove_file(owner, &id).await;
            removed += 1;
        }
        if removed > 0 {
            tracing::info!(files = removed, "removed what interrupted uploads have left");
        }
        Ok(removed)
    }
}

impl Inner {
    /// Removes all uploads of an owner from the folder, and takes those in the bucket out of use; returns how many are removed.
    async fn give_up_all_of(&self, owner: KeyId) -> Result<usize, UploadError> {
        let _turn = self.turn.lock().await;
        let mut removed = 0;
        for upload in self.store.of(owner, OffsetDateTime::UNIX_EPOCH).await? {
            if upload.place == FilePlace::Folder {
                removed += usize::from(self.remove_from_folder(owner, &upload.id).await?);
            }
        }
        self.store.hide_all_of(owner, self.moment()).await?;
        Ok(removed)
    }

    /// Removes what has expired or is out of use from the bucket, of an owner or of all, until that fails: a bucket that does not
    /// answer fails at each file. Returns how many uploads.
    async fn clear_bucket(&self, owner: Option<KeyId>) -> Result<usize, UploadError> {
        let mut removed = 0;
        for _ in 0..BATCHES_MAX {
            let batch = self.store.leaving_bucket(owner, self.cutoff(), BATCH).await?;
            for group in batch.chunks(REMOVALS_MAX) {
                let outcomes = join_all(group.iter().map(|(owner, id)| self.remove_leaving(owner, id))).await;
                let mut has_failed = false;
                for outcome in outcomes {
                    let is_gone = outcome?;
                    removed += usize::from(is_gone);
                    has_failed |= !is_gone;
                }
                if has_failed {
                    return Ok(removed);
                }
            }
            if batch.len() < BATCH as usize {
                break;
            }
        }
        Ok(removed)
    }

    /// Removes an upload from the bucket that has expired or is out of use; whether it is gone.
    async fn remove_leaving(&self, owner: &str, id: &str) -> Result<bool, UploadError> {
        let (Ok(of), Ok(upload)) = (owner.parse::<KeyId>(), id.parse::<UploadId>()) else {
            self.store.delete_as_stored(owner, id).await?;
            return Ok(true);
        };
        let _file = self.file_turns.take(of, &upload).await;
        // Not if it has arrived again meanwhile.
        if !self.store.hide(of, &upload, Some(self.cutoff()), self.moment()).await? {
            return Ok(true);
        }
        self.remove_hidden(of, &upload).await
    }

    /// Removes a batch of what has expired in the folder; returns how many uploads.
    async fn remove_expired(&self) -> Result<usize, UploadError> {
        let _turn = self.turn.lock().await;
        let expired = self.store.expired(self.cutoff(), BATCH).await?;
        for (owner, id) in &expired {
            match (owner.parse::<KeyId>(), id.parse::<UploadId>()) {
                (Ok(owner), Ok(id)) => drop(self.remove_from_folder(owner, &id).await?),
                _ => self.store.delete_as_stored(owner, id).await?,
            }
        }
        Ok(expired.len())
    }
}
