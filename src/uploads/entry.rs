//! Files that have arrived: into the folder or the bucket, and then into the database. A crash between the two leaves a file
//! without a row: in the folder the next start removes it, in the bucket a rule of its owner's.

use std::io;

use tokio::task::spawn_blocking;

use super::Upload;
use super::arrival::{Arrival, given_up};
use super::bucket::UploadBucket;
use super::error::UploadError;
use super::files::Written;
use super::service::Inner;
use super::store::{FilePlace, StoredUpload};
use crate::domain::ids::KeyId;

impl Inner {
    /// Keeps a file that has arrived.
    pub(super) async fn enter(&self, arrival: Arrival) -> Result<Upload, UploadError> {
        let Arrival { owner, part, place: _place } = arrival;
        let part = part.ok_or_else(given_up)?;
        let written = spawn_blocking(move || part.finish()).await.map_err(io::Error::other)??;
        let _file = self.file_turns.take(owner, &written.id).await;
        let stored = match &self.bucket {
            None => self.enter_folder(owner, written).await?,
            Some(bucket) => self.enter_bucket(bucket, owner, written).await?,
        };
        Ok(self.shown(stored))
    }

    async fn enter_folder(&self, owner: KeyId, written: Written) -> Result<StoredUpload, UploadError> {
        let _turn = self.turn.lock().await;
        // One file at a time is in memory.
        let reading = spawn_blocking(move || written.read().map(|(_, header)| (written, header)));
        let (written, header) = reading.await.map_err(io::Error::other)??;
        let known = self.store.place(owner, &written.id).await?;
        if known.is_none() {
            self.check_room(owner, written.bytes).await?;
        }
        let stored = StoredUpload {
            id: written.id.clone(),
            bytes: written.bytes,
            header,
            stored_at: self.stored_now(),
            place: FilePlace::Folder,
        };
        self.name(owner, written).await?;
        if let Err(error) = self.store.put(owner, &stored).await {
            if known != Some(FilePlace::Folder) {
                self.remove_file(owner, &stored.id).await;
            }
            return Err(error);
        }
        Ok(stored)
    }

    async fn enter_bucket(
        &self,
        bucket: &UploadBucket,
        owner: KeyId,
        written: Written,
    ) -> Result<StoredUpload, UploadError> {
        let _sending = bucket.sending.acquire().await;
        let (id, size) = (written.id.clone(), written.bytes);
        // The file on the disk goes when it is in memory: whoever sent it sends it again if anything fails.
        let reading = spawn_blocking(move || written.read());
        let (bytes, header) = reading.await.map_err(io::Error::other)??;
        let stored = StoredUpload { id, bytes: size, header, stored_at: self.stored_now(), place: FilePlace::Bucket };
        let known = self.store.place(owner, &stored.id).await?;
        if known.is_none() {
            // Before anything is sent.
            self.check_room(owner, stored.bytes).await?;
        }
        let sent = bucket.put(owner, &stored, bytes).await;
        let outcome = match sent {
            Ok(()) => self.commit(owner, &stored, known.is_some()).await,
            failed => failed,
        };
        if let Err(error) = outcome {
            if known != Some(FilePlace::Bucket)
                && let Err(error) = bucket.remove(owner, &stored.id).await
            {
                tracing::warn!(?error, %owner, id = %stored.id, "a file without an upload may be left in the bucket");
            }
            return Err(error);
        }
        if known == Some(FilePlace::Folder) {
            self.remove_file(owner, &stored.id).await;
        }
        Ok(stored)
    }

    /// Stores the row of a file in the bucket, unless others have taken the room for it meanwhile.
    async fn commit(&self, owner: KeyId, stored: &StoredUpload, is_known: bool) -> Result<(), UploadError> {
        let _turn = self.turn.lock().await;
        if !is_known {
            self.check_room(owner, stored.bytes).await?;
        }
        self.store.put(owner, stored).await
    }

    async fn name(&self, owner: KeyId, written: Written) -> io::Result<()> {
        let files = self.files.clone();
        spawn_blocking(move || files.name(owner, &written)).await.map_err(io::Error::other)?
    }
}
