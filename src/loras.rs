//! The catalog of LoRAs: their files in the data folder, and what each one is. Knows neither how an engine reads them nor what
//! uses them: it is given a function that inspects a file, and the table of jobs refers to its rows.
//!
//! A file is written under a temporary name, inspected, renamed, and its row is committed: what has a row is complete.

mod catalog;
mod error;
mod files;
mod name;
mod report;
mod store;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

pub use catalog::{Added, LoraCatalog, LoraParts, NewName};
pub use error::LoraError;
pub use report::{ChangedComponent, LoraReport};
pub use upload::Upload;

use crate::domain::adapter::{AdapterId, AdapterUse};

/// Longest name of a LoRA, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// Maximum LoRAs of a catalog.
pub const LORAS_MAX: u32 = 1000;

/// Inspects a file; blocks while it reads. The error is what is wrong with it, for people.
pub type Inspect = dyn Fn(&Path) -> Result<Inspected, String> + Send + Sync;

/// Fetches a file from the hub; blocks. The error is why it cannot, for people.
pub type Fetch = dyn Fn(HubFile) -> Result<PathBuf, String> + Send + Sync;

/// A LoRA of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its repository: `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit. `None`: the default branch.
    pub revision: Option<String>,
    /// The file, by its name or a part of it. `None`: the only weight file.
    pub file: Option<String>,
}

/// What an inspection finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// What the file changes, and what it says of itself.
    pub report: LoraReport,
    /// A small image, JPEG.
    pub thumbnail: Option<Vec<u8>>,
}

/// A LoRA of the catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The SHA-256 of its file.
    pub id: AdapterId,
    /// Its name, which no other has.
    pub name: String,
    /// The size of its file.
    pub bytes: u64,
    /// What it changes, and what its file says of itself.
    pub report: LoraReport,
    /// Whether it has a thumbnail.
    pub has_thumbnail: bool,
    /// Who added it: a kind of actor of the audit log.
    pub added_by: String,
    /// When it was added.
    pub created_at: OffsetDateTime,
}

/// A LoRA of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundLora {
    /// Its id.
    pub id: AdapterId,
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: Arc<Path>,
}

impl FoundLora {
    /// Its use with a strength.
    #[must_use]
    pub fn at(&self, scale: f64) -> AdapterUse {
        AdapterUse { id: self.id.clone(), file: Arc::clone(&self.file), scale }
    }
}
