//! The hub of models: lists a repository, downloads its files, and keeps them in the cache that Hugging Face's own tools
//! share. Knows nothing of what is in a file, nor whether the files make a model.

mod cache;
mod checksum;
mod client;
mod download;
mod error;
mod file_system;
mod folder;
mod listing;
mod repository;
mod selection;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

pub use cache::cached;
pub use checksum::{Checksum, checksum_of, sha256_of};
pub use download::{Downloaded, Request, download};
pub use error::HubError;
pub use file_system::FileSystem;
pub use folder::{KnownFile, known_files};
pub use repository::{RepositoryId, Revision};

use crate::domain::hub_token::HubToken;

/// Where the hub is, the token for it, and where its files go.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Scheme and host, with a port and a path if it has them. Without a slash at the end.
    pub endpoint: String,
    /// `None`: the token in [`HubSettings::token_file`], or no token.
    pub token: Option<HubToken>,
    /// A file with a token. It may be missing.
    pub token_file: Option<PathBuf>,
    /// Folder of all downloaded repositories.
    pub cache_dir: Option<PathBuf>,
    /// Whether requests to the hub are forbidden.
    pub is_offline: bool,
    /// Proxies on the way to the hub.
    pub proxy: Proxy,
    /// Timeouts and retries.
    pub patience: Patience,
    /// How locks and links are made.
    pub file_system: FileSystem,
}

/// Addresses of the proxies on the way to the hub, and the hosts that are reached without one.
#[derive(Clone, Default)]
pub struct Proxy {
    /// For https.
    pub https: Option<String>,
    /// For plain http.
    pub http: Option<String>,
    /// Hosts that are reached without a proxy, separated by commas.
    pub except: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // An address may contain a password.
        f.debug_struct("Proxy").field("except", &self.except).finish_non_exhaustive()
    }
}

/// Timeouts and retries of requests to the hub.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Timeout of a connection.
    pub connect: Duration,
    /// Timeout of the next bytes of an answer.
    pub read: Duration,
    /// Maximum attempts in a row that bring nothing.
    pub tries_max: u32,
    /// Pause before the second attempt; it doubles for each further one.
    pub pause: Duration,
    /// Longest wait that a hub may ask for when it limits the rate of requests.
    pub rate_limit_wait_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            read: Duration::from_mins(1),
            tries_max: 5,
            pause: Duration::from_secs(1),
            rate_limit_wait_max: Duration::from_mins(5),
        }
    }
}

/// A file of a repository, as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Path inside the repository, with `/`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// Receives the progress of a download. Called from several tasks at a time.
pub trait Progress: Send + Sync {
    /// A file that was chosen by name, and its size. Before anything is transferred.
    fn chosen(&self, path: &str, bytes: u64);
    /// The files and bytes of the download, and how many of the bytes are present already.
    fn planned(&self, files: usize, bytes: u64, bytes_here: u64);
    /// A file's transfer begins, with this much of it present already.
    fn begun(&self, path: &str, bytes: u64, bytes_here: u64);
    /// More of a file was received.
    fn received(&self, path: &str, bytes: u64);
    /// Received bytes of a file are discarded: its transfer starts again from the beginning.
    fn lost(&self, path: &str, bytes: u64);
    /// A file is complete and its checksum verified.
    fn ended(&self, path: &str);
    /// A pause, and the reason for it.
    fn waiting(&self, reason: &str, wait: Duration);
}
