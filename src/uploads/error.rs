//! Why something could not be done with an upload.

use std::io;

use crate::auth::KeyError;
use crate::decode::DecodeError;
use crate::objects::ObjectsError;
use crate::store::StoreError;

/// Why something could not be done with an upload.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The key has no such upload.
    #[error("there is no such upload")]
    NotFound,
    /// The file is too large.
    #[error("the file is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The file is no image that requests can use.
    #[error("{0}")]
    Rejected(DecodeError),
    /// The key has as many uploads as it may have.
    #[error(
        "the key has {uploads} uploads of {bytes} bytes, and may have {uploads_max} of {bytes_max}: delete some first"
    )]
    OwnerFull {
        /// How many it has.
        uploads: u32,
        /// Their bytes.
        bytes: u64,
        /// How many it may have.
        uploads_max: u32,
        /// How many bytes they may have.
        bytes_max: u64,
        /// When the next of them goes by itself.
        retry_after_seconds: u64,
    },
    /// All keys together have as many as there may be.
    #[error("the uploads of all keys take as much space as they may")]
    Full {
        /// When the next of them goes by itself.
        retry_after_seconds: u64,
    },
    /// Too many files are arriving, of all keys or of this one.
    #[error("too many uploads are arriving at the same time")]
    Busy,
    /// The disk failed.
    #[error("uploads cannot be written or read")]
    Disk(#[from] io::Error),
    /// The bucket failed.
    #[error("the bucket does not take uploads, or does not give them")]
    Bucket(#[from] ObjectsError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A row holds what this program does not write.
    #[error("the row of an upload cannot be read: column {column}")]
    CorruptRow {
        /// The invalid column.
        column: &'static str,
    },
}
