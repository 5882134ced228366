//! Images that keys upload once and name in later requests. Each belongs to the key that sent it, and is kept for a
//! while. Knows neither what a job is nor HTTP: a job that uses an upload has a copy of its pixels.
//!
//! A file is written under a temporary name and checked. Then it is renamed, or put into the bucket if there is one, and its row
//! is committed, which says where it is: what has a row is complete. Only one process of a data folder does this.

mod arrival;
mod bucket;
mod entry;
mod error;
mod file;
mod files;
mod id;
mod removal;
mod retention;
mod service;
mod store;
mod turns;

use std::time::Duration;

use time::OffsetDateTime;

pub use arrival::Arrival;
pub use error::UploadError;
pub use file::UploadFile;
pub use id::UploadId;
pub use service::{UploadParts, Uploads};

use crate::domain::format::OutputFormat;

/// How long an upload is kept after it last arrived.
pub const UPLOAD_RETENTION: Duration = Duration::from_hours(24);

/// Maximum uploads of one key.
pub const UPLOADS_PER_OWNER_MAX: u32 = 256;

/// Maximum bytes of one key's uploads: 64 of the largest files.
pub const OWNER_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Maximum bytes of all uploads.
pub const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Limits of uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// How long one is kept after it last arrived.
    pub retention: Duration,
    /// Maximum uploads of one key.
    pub owner_uploads_max: u32,
    /// Maximum bytes of one key's uploads.
    pub owner_bytes_max: u64,
    /// Maximum bytes of all uploads.
    pub bytes_max: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            retention: UPLOAD_RETENTION,
            owner_uploads_max: UPLOADS_PER_OWNER_MAX,
            owner_bytes_max: OWNER_BYTES_MAX,
            bytes_max: BYTES_MAX,
        }
    }
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The SHA-256 of its file.
    pub id: UploadId,
    /// The size of its file.
    pub bytes: u64,
    /// Pixels across, once it is upright.
    pub width: u32,
    /// Pixels down, once it is upright.
    pub height: u32,
    /// The format of its file.
    pub format: OutputFormat,
    /// When it goes, unless it arrives again.
    pub expires_at: OffsetDateTime,
}
