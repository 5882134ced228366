//! Errors of downloads: one variant for each thing that a user can do about it.

use std::io;
use std::path::PathBuf;

use super::ListedFile;

/// Maximum files that a message lists.
const FILES_LISTED_MAX: usize = 60;

const GIBIBYTE: f64 = (1_u64 << 30) as f64;

fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIBIBYTE)
}

/// Files and their sizes, one a line.
fn lines(files: &[ListedFile]) -> String {
    let shown = files.iter().take(FILES_LISTED_MAX);
    let mut lines: Vec<String> =
        shown.map(|file| format!("\n  {:>10}  {}", gibibytes(file.bytes), file.path)).collect();
    if files.len() > FILES_LISTED_MAX {
        lines.push(format!("\n  and {} more", files.len() - FILES_LISTED_MAX));
    }
    lines.concat()
}

/// Why a repository or one of its files is not available.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not the name of a repository.
    #[error("`{0}` is no repository of the hub: write OWNER/NAME, like black-forest-labs/FLUX.1-dev")]
    NotARepository(String),
    /// Not the name of a revision.
    #[error("`{0}` is no revision: name a branch, a tag or a commit")]
    NotARevision(String),
    /// No cache folder is configured.
    #[error("no folder for downloads is configured: set HF_HOME, or name one with --to")]
    NoCache,
    /// Requests to the hub are forbidden.
    #[error("`{repository}` is not in the cache `{}`, and HF_HUB_OFFLINE forbids asking the hub: unset it, or name the model's folder, `{repository}=DIR`", cache.display())]
    Offline {
        /// The repository.
        repository: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// 401 from a gated repository, and no token was sent.
    #[error(
        "`{repository}` is available only to accounts that accepted its license: sign in at {page} and accept it there, make a token at {tokens_page}, and put it into the environment variable HF_TOKEN or the file {token_file}"
    )]
    GatedWithoutToken {
        /// The repository.
        repository: String,
        /// Page where its license is accepted.
        page: String,
        /// Page where tokens are made.
        tokens_page: String,
        /// Where a token is looked for.
        token_file: String,
    },
    /// 403 from a gated repository: the token is valid, its account has no access.
    #[error(
        "the account of the token in {token_place} has no access to `{repository}`: accept its license at {page}, signed in with that account, and try again{said}"
    )]
    GatedNotAccepted {
        /// The repository.
        repository: String,
        /// Origin of the token.
        token_place: String,
        /// Page where its license is accepted.
        page: String,
        /// The hub's own message, with a separator before it, or empty.
        said: String,
    },
    /// 401, although a token was sent.
    #[error("the hub rejects the token in {token_place}: make a new one at {tokens_page}{said}")]
    TokenRefused {
        /// Origin of the token.
        token_place: String,
        /// Page where tokens are made.
        tokens_page: String,
        /// The hub's own message, with a separator before it, or empty.
        said: String,
    },
    /// 401 without a token: the repository is missing or private.
    #[error(
        "there is no repository `{repository}` on {hub}, or it is private: check its name; for a private repository put a token into HF_TOKEN or the file {token_file}"
    )]
    NotThereOrPrivate {
        /// The repository.
        repository: String,
        /// The host.
        hub: String,
        /// Where a token is looked for.
        token_file: String,
    },
    /// 403 for another reason than a license.
    #[error("the hub refuses `{what}`: use a token with the right to read it{said}")]
    Forbidden {
        /// The repository or file.
        what: String,
        /// The hub's own message, with a separator before it, or empty.
        said: String,
    },
    /// 404 for the repository.
    #[error("there is no repository `{repository}` on {hub}: check its name")]
    NoRepository {
        /// The repository.
        repository: String,
        /// The host.
        hub: String,
    },
    /// 404 for the revision.
    #[error("`{repository}` has no revision `{revision}`: its branches and tags are at {page}")]
    NoRevision {
        /// The repository.
        repository: String,
        /// The missing revision.
        revision: String,
        /// Page that lists the revisions.
        page: String,
    },
    /// 404 for a file that the listing names.
    #[error("`{repository}` lists the file `{path}` but does not have it: try again, or name another --revision")]
    NoFile {
        /// The repository.
        repository: String,
        /// The file.
        path: String,
    },
    /// 429, with a longer pause than the client waits.
    #[error(
        "the hub limits the rate of requests from here: try again in {} seconds; with a token in HF_TOKEN the limit is higher",
        wait_seconds
    )]
    RateLimited {
        /// The pause that the hub asked for last.
        wait_seconds: u64,
    },
    /// Another status.
    #[error("the hub answers {status} for `{what}`, {tries} times in a row{said}")]
    Status {
        /// The status.
        status: u16,
        /// The repository or file.
        what: String,
        /// Number of attempts.
        tries: u32,
        /// The hub's own message, with a separator before it, or empty.
        said: String,
    },
    /// No connection at all.
    #[error("{host} cannot be reached: {reason}; HTTPS_PROXY names a proxy, HF_ENDPOINT another hub")]
    Unreachable {
        /// The host.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// The connection broke off too often.
    #[error(
        "the connection broke off {tries} times in a row, with {received} of {bytes} bytes of `{path}` here: {reason}; run the same command again to resume"
    )]
    Cut {
        /// The file.
        path: String,
        /// Bytes that are present.
        received: u64,
        /// Bytes of the file.
        bytes: u64,
        /// Number of attempts in a row without a byte.
        tries: u32,
        /// What the system says.
        reason: String,
    },
    /// The content does not match the listed checksum.
    #[error(
        "`{path}` arrived damaged and was deleted: its {kind} is {found}, the hub lists {expected}; run the same command to download it again"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Kind of checksum.
        kind: &'static str,
        /// The listed checksum.
        expected: String,
        /// The content's checksum.
        found: String,
    },
    /// A file is larger than the caller takes, found before the first transfer.
    #[error("`{path}` has {bytes} bytes, and at most {bytes_max} are taken")]
    FileTooLarge {
        /// Path inside the repository.
        path: String,
        /// Its size.
        bytes: u64,
        /// The caller's limit.
        bytes_max: u64,
    },
    /// Too little free space, found before the first transfer.
    #[error(
        "the download needs {} and {} are free in `{}`: free some space, or choose another folder with --to or HF_HOME", gibibytes(*needed), gibibytes(*free), place.display()
    )]
    NoRoom {
        /// Bytes to download.
        needed: u64,
        /// Free bytes.
        free: u64,
        /// The folder.
        place: PathBuf,
    },
    /// The disk filled up during the download.
    #[error("the disk is full at `{}`: free some space and run the same command to resume", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// An error of the file system.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file system has no locks. Found before the first transfer.
    #[error(
        "`{}` cannot be locked ({source}), and without locks two processes could write one file: choose a folder on another file system with HF_HUB_CACHE or --to", lock.display()
    )]
    NoLocks {
        /// The lock file.
        lock: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process downloads the file.
    #[error("another process is downloading `{path}` (it holds `{}`): wait for it, or stop it", lock.display())]
    Busy {
        /// The file.
        path: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// The repository is not a pipeline in diffusers' layout.
    #[error(
        "`{repository}` has no {missing}: without --file, only repositories in diffusers' layout and those of single weight \
         files can be downloaded"
    )]
    NotAPipeline {
        /// The repository.
        repository: String,
        /// The missing part.
        missing: String,
    },
    /// The repository has several weight files, and none was named.
    #[error("`{repository}` has several files: name one, or a part of its name, with --file{}", lines(files))]
    SeveralFiles {
        /// The repository.
        repository: String,
        /// The files.
        files: Vec<ListedFile>,
    },
    /// A name or a part of a name that means no file, or several.
    #[error("{} file `{name}` of `{repository}`: name one of these with --file{}", if *is_part { "more than one" } else { "no" }, lines(files))]
    NoSuchFile {
        /// The repository.
        repository: String,
        /// The name.
        name: String,
        /// Whether it is a part of several names, which `files` are. Otherwise they are all weight files.
        is_part: bool,
        /// What can be named.
        files: Vec<ListedFile>,
    },
    /// An invalid answer.
    #[error("{host} does not answer like a hub: {reason}")]
    Malformed {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The client could not be made.
    #[error("requests to the hub are not possible: {0}")]
    Client(String),
    /// A token file without a valid token.
    #[error("the file `{}`: {reason}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong. Does not repeat the content.
        reason: String,
    },
}

impl HubError {
    /// An error of the file system at `path`.
    pub(super) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_message() {
        let full = HubError::file("/models/blob", io::ErrorKind::StorageFull.into()).to_string();
        assert!(full.starts_with("the disk is full at `/models/blob`") && full.contains("resume"), "{full}");
        let other = HubError::file("/models/blob", io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(other.starts_with("`/models/blob`: permission denied"), "{other}");
    }
}
