//! The hub of models: what a repository holds, its files brought here, and the cache that Hugging Face's own tools share.
//! Knows nothing of what is in a file; whether the files make a model is not its to say.

mod cache;
mod checksum;
mod client;
mod download;
mod error;
mod file_system;
mod folder;
mod listing;
mod repository;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

pub use cache::cached;
pub use checksum::{Checksum, checksum_of};
pub use download::{Downloaded, Request, download};
pub use error::HubError;
pub use file_system::FileSystem;
pub use folder::{KnownFile, known_files};
pub use repository::{RepositoryId, Revision};

use crate::domain::hub_token::HubToken;

/// Where the hub is, who asks it, and where its files go.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Scheme, host, and where it has one a port and a path. Ends in no slash.
    pub endpoint: String,
    /// Who asks. `None`: who [`HubSettings::token_file`] says, or nobody in particular.
    pub token: Option<HubToken>,
    /// A file with a token, which need not be there.
    pub token_file: Option<PathBuf>,
    /// Folder of all downloaded repositories.
    pub cache_dir: Option<PathBuf>,
    /// Whether the hub must not be asked for anything.
    pub is_offline: bool,
    /// What stands between.
    pub proxy: Proxy,
    /// How long a hub is waited for.
    pub patience: Patience,
    /// How locks and links are made.
    pub file_system: FileSystem,
}

/// Proxies on the way to the hub: their addresses, and the hosts, separated by commas, that are reached without.
#[derive(Clone, Default)]
pub struct Proxy {
    /// For https.
    pub https: Option<String>,
    /// For plain http.
    pub http: Option<String>,
    /// Reached without.
    pub except: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A password may stand in an address.
        f.debug_struct("Proxy").field("except", &self.except).finish_non_exhaustive()
    }
}

/// How long a hub is waited for, and how often it is asked again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes of an answer.
    pub read: Duration,
    /// Attempts in a row that bring nothing.
    pub tries_max: u32,
    /// Before the second attempt; twice as long before each further one.
    pub pause: Duration,
    /// Longest wait that a hub may ask for when it is asked too often.
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

/// Hears how far a download is. Called from several tasks at a time.
pub trait Progress: Send + Sync {
    /// It is known what there is to do: so many files of so many bytes, of which so many are here already.
    fn planned(&self, files: usize, bytes: u64, bytes_here: u64);
    /// A file has its turn; so much of it is here already.
    fn begun(&self, path: &str, bytes: u64, bytes_here: u64);
    /// More of a file has come.
    fn received(&self, path: &str, bytes: u64);
    /// What had come of a file was of no use, and it is begun anew.
    fn lost(&self, path: &str, bytes: u64);
    /// A file is here, whole and compared.
    fn ended(&self, path: &str);
    /// Nothing comes for a while, and why.
    fn waiting(&self, reason: &str, wait: Duration);
}
