//! The files of uploads in a bucket, and how many are in memory on their way there.

use tokio::sync::Semaphore;

use super::error::UploadError;
use super::file::UploadFile;
use super::id::UploadId;
use super::store::StoredUpload;
use crate::domain::ids::KeyId;
use crate::objects::Objects;

/// Files that are in memory to be sent at the same time: those of one key leave room for others, as few of its files arrive at
/// one time.
const SENDING_MAX: usize = 8;

/// A bucket of uploads.
#[derive(Debug)]
pub(super) struct UploadBucket {
    objects: Objects,
    /// A permit for each file that is in memory to be sent.
    pub(super) sending: Semaphore,
}

impl UploadBucket {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects, sending: Semaphore::new(SENDING_MAX) }
    }

    /// Writes the file of an upload, in place of one that is there: its name says what its bytes are, and a rule of the bucket
    /// that removes old files must find a young one.
    pub(super) async fn put(&self, owner: KeyId, upload: &StoredUpload, bytes: Vec<u8>) -> Result<(), UploadError> {
        let media_type = upload.header.format.content_type();
        Ok(self.objects.replace(&name_of(owner, &upload.id), bytes, media_type).await?)
    }

    /// Removes the file of an upload; a missing one is no error.
    pub(super) async fn remove(&self, owner: KeyId, id: &UploadId) -> Result<(), UploadError> {
        Ok(self.objects.delete(&name_of(owner, id)).await?)
    }

    /// The file of an upload.
    pub(super) fn file(&self, owner: KeyId, upload: &StoredUpload) -> UploadFile {
        UploadFile::in_bucket(self.objects.clone(), name_of(owner, &upload.id), upload.bytes)
    }
}

fn name_of(owner: KeyId, id: &UploadId) -> String {
    format!("uploads/{owner}/{id}")
}
