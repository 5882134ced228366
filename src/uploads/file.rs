//! The file of an upload as those see it who read it, wherever it is.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;

use super::error::UploadError;
use crate::objects::{Objects, ObjectsError};

/// The file of an upload. It may go at any time.
#[derive(Debug, Clone)]
pub struct UploadFile(Source);

#[derive(Debug, Clone)]
enum Source {
    Folder(PathBuf),
    Bucket { objects: Objects, name: String, bytes: u64 },
}

impl UploadFile {
    pub(super) fn in_folder(path: PathBuf) -> Self {
        Self(Source::Folder(path))
    }

    /// The file of this name and size.
    pub(super) fn in_bucket(objects: Objects, name: String, bytes: u64) -> Self {
        Self(Source::Bucket { objects, name, bytes })
    }

    /// Reads the file; `None` if it is gone. Blocks: for threads of `spawn_blocking`. A bucket has to answer within `patience`.
    ///
    /// # Errors
    /// When the disk fails, or the bucket does not give the file.
    pub fn read(&self, patience: Duration) -> Result<Option<Vec<u8>>, UploadError> {
        match &self.0 {
            Source::Folder(path) => match fs::read(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                read => Ok(Some(read?)),
            },
            Source::Bucket { objects, name, bytes } => {
                Handle::current().block_on(read_from_bucket(objects, name, *bytes, patience))
            }
        }
    }
}

async fn read_from_bucket(
    objects: &Objects,
    name: &str,
    bytes: u64,
    patience: Duration,
) -> Result<Option<Vec<u8>>, UploadError> {
    let read = tokio::time::timeout(patience, objects.get_at_most(name, bytes)).await;
    match read.unwrap_or(Err(ObjectsError::Late(patience.as_secs()))) {
        Ok(file) if file.len() as u64 == bytes => Ok(Some(file)),
        Err(ObjectsError::Missing) => Ok(None),
        Ok(_) | Err(ObjectsError::TooLarge(_)) => {
            tracing::warn!(name, "a file in the bucket is not the upload that was put there");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
