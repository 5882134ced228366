//! Removes single uploads. In the folder the row goes first: a file without one is out of use, and removed later. In the bucket
//! nobody looks for such files, so there the row goes last, and keeps the upload out of use until then.

use std::io;

use time::OffsetDateTime;
use tokio::task::spawn_blocking;

use super::error::UploadError;
use super::id::UploadId;
use super::service::Inner;
use super::store::FilePlace;
use crate::domain::ids::KeyId;

impl Inner {
    /// Removes an upload that is in use; whether there was one. If the bucket does not remove the file, the sweep does it later.
    pub(super) async fn remove(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        let _file = self.file_turns.take(owner, id).await;
        let found = self.store.find(owner, id, OffsetDateTime::UNIX_EPOCH).await?;
        let Some(upload) = found.filter(|upload| self.can_reach(upload.place)) else { return Ok(false) };
        if upload.place == FilePlace::Folder {
            let _turn = self.turn.lock().await;
            return self.remove_from_folder(owner, id).await;
        }
        self.store.hide(owner, id, None, self.moment()).await?;
        self.remove_hidden(owner, id).await?;
        Ok(true)
    }

    /// Removes an upload from the folder, in the turn of all; whether it was there.
    pub(super) async fn remove_from_folder(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        let was_there = self.store.delete(owner, id).await?;
        if was_there {
            self.remove_file(owner, id).await;
        }
        Ok(was_there)
    }

    /// Removes the file of an upload that is out of use from the bucket, in its turn, and then its row; whether both are gone.
    pub(super) async fn remove_hidden(&self, owner: KeyId, id: &UploadId) -> Result<bool, UploadError> {
        if let Some(bucket) = &self.bucket {
            if let Err(error) = bucket.remove(owner, id).await {
                tracing::warn!(?error, %owner, %id, "the file of a removed upload is in the bucket until a sweep");
                return Ok(false);
            }
        } else {
            tracing::warn!(%owner, %id, "the file of a removed upload stays in the bucket of before");
        }
        self.store.delete(owner, id).await?;
        Ok(true)
    }

    pub(super) async fn remove_file(&self, owner: KeyId, id: &UploadId) {
        let (files, of) = (self.files.clone(), id.clone());
        let removed = spawn_blocking(move || files.remove(owner, &of)).await;
        if let Err(error) = removed.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            tracing::warn!(%error, %owner, %id, "the file of a removed upload is left");
        }
    }
}
