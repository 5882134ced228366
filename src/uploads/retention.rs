//! Removes uploads that have expired or whose key is revoked, files without a row, and rows without a file.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::error::UploadError;
use super::files::UploadFiles;
use super::id::UploadId;
use super::service::{Inner, Uploads};
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
                removed += self.remove_all_of(owner).await?;
            }
        }
        for _ in 0..BATCHES_MAX {
            let expired = self.0.remove_expired().await?;
            removed += expired;
            if expired < BATCH as usize {
                break;
            }
        }
        Ok(removed)
    }

    /// Removes all uploads of an owner; returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_all_of(&self, owner: KeyId) -> Result<usize, UploadError> {
        let _turn = self.0.turn.lock().await;
        let mut removed = 0;
        for upload in self.0.store.of(owner, time::OffsetDateTime::UNIX_EPOCH).await? {
            removed += usize::from(self.0.remove_in_turn(owner, &upload.id).await?);
        }
        Ok(removed)
    }

    /// Removes files without a row, and rows without a file: a copy of the database has none. At a start nothing is arriving,
    /// and incomplete files go as well.
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
        for (owner, id) in inner.store.all().await? {
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
    /// Removes a batch of what has expired; returns how many uploads.
    async fn remove_expired(&self) -> Result<usize, UploadError> {
        let _turn = self.turn.lock().await;
        let expired = self.store.expired(self.cutoff(), BATCH).await?;
        for (owner, id) in &expired {
            match (owner.parse::<KeyId>(), id.parse::<UploadId>()) {
                (Ok(owner), Ok(id)) => drop(self.remove_in_turn(owner, &id).await?),
                _ => self.store.delete_as_stored(owner, id).await?,
            }
        }
        Ok(expired.len())
    }
}
