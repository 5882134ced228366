//! Why something could not be done with a LoRA.

use std::io;

use super::{LORAS_MAX, NAME_CHARS_MAX};
use crate::auth::KeyFailure;
use crate::store::StoreError;

/// Why something could not be done with a LoRA.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// There is no such LoRA.
    #[error("there is no LoRA `{0}`: `fluxserve loras list` shows them")]
    NotFound(String),
    /// Unfinished jobs use it.
    #[error("unfinished jobs use `{0}`: remove it when they have ended, or cancel them")]
    InUse(String),
    /// The name cannot be one.
    #[error(
        "must be 1 to {NAME_CHARS_MAX} letters, digits, spaces or any of `-_.`, begin with a letter or digit, and be neither \
         `none` nor an id"
    )]
    Name,
    /// Another LoRA has the name.
    #[error("another LoRA has the name `{0}`: choose another name")]
    NameTaken(String),
    /// The file is too large.
    #[error("the file is larger than {bytes_max} bytes: `lora_bytes_max` sets the limit")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The file cannot be used, in the reader's words.
    #[error("{0}")]
    Rejected(String),
    /// The file cannot be fetched from the hub.
    #[error("{0}")]
    NotFetched(String),
    /// The catalog is full.
    #[error("there are {LORAS_MAX} LoRAs already: remove one first")]
    TooMany,
    /// Too many files are being added.
    #[error("too many files are being added at the same time")]
    Busy,
    /// The file that was to be added cannot be read.
    #[error("`{path}` cannot be read: {cause}")]
    Source {
        /// Its path.
        path: String,
        /// Why not.
        cause: io::Error,
    },
    /// The disk failed.
    #[error("the files of LoRAs cannot be written or read")]
    Disk(#[from] io::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log failed.
    #[error(transparent)]
    Audit(#[from] KeyFailure),
    /// A row holds what this program does not write.
    #[error("the row of LoRA {id} cannot be read: column {column}")]
    CorruptRow {
        /// The row's id as stored.
        id: String,
        /// The invalid column.
        column: &'static str,
    },
}
