//! Why something of the hub is not here: one variant for each thing that somebody can do about it.

use std::io;
use std::path::PathBuf;

const GIBIBYTE: f64 = (1_u64 << 30) as f64;

fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIBIBYTE)
}

/// Why a repository or one of its files could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A text that names no repository.
    #[error("`{0}` is no repository of the hub: those are called OWNER/NAME, like black-forest-labs/FLUX.1-dev")]
    NotARepository(String),
    /// A text that names no revision.
    #[error("`{0}` is no revision: name a branch, a tag or a commit")]
    NotARevision(String),
    /// There is no folder to put anything in.
    #[error("no folder for downloads is known: set HF_HOME, or name one with --to")]
    NoCache,
    /// The hub must not be asked.
    #[error("`{repository}` is not whole in the cache `{}`, and HF_HUB_OFFLINE keeps the hub from being asked: unset it, or name the model's folder, `{repository}=DIR`", cache.display())]
    Offline {
        /// What was wanted.
        repository: String,
        /// Where it is not.
        cache: PathBuf,
    },
    /// 401 from a gated repository, and no token was sent.
    #[error(
        "`{repository}` is given only to those who accept its licence: sign in at {page} and accept it there, make a token at {tokens_page}, and put it into the environment variable HF_TOKEN or the file {token_file}"
    )]
    GatedWithoutToken {
        /// What was wanted.
        repository: String,
        /// Where its licence is accepted.
        page: String,
        /// Where tokens are made.
        tokens_page: String,
        /// Where a token is looked for.
        token_file: String,
    },
    /// 403 from a gated repository: the token is good, its account may not.
    #[error(
        "the account of the token in {token_place} has not been let in to `{repository}`: accept its licence at {page}, signed in to that account, and try again{said}"
    )]
    GatedNotAccepted {
        /// What was wanted.
        repository: String,
        /// Where the token comes from.
        token_place: String,
        /// Where its licence is accepted.
        page: String,
        /// What the hub says, with a separator before it, or nothing.
        said: String,
    },
    /// 401, although a token was sent.
    #[error("the hub does not take the token in {token_place}: make a new one at {tokens_page}{said}")]
    TokenRefused {
        /// Where the token comes from.
        token_place: String,
        /// Where tokens are made.
        tokens_page: String,
        /// What the hub says, with a separator before it, or nothing.
        said: String,
    },
    /// 401 without a token: the hub does not say which of two it is.
    #[error(
        "there is no repository `{repository}` on {hub}, or it is a private one: look for a slip in its name; for a private one put a token into HF_TOKEN or the file {token_file}"
    )]
    NotThereOrPrivate {
        /// What was wanted.
        repository: String,
        /// Who was asked.
        hub: String,
        /// Where a token is looked for.
        token_file: String,
    },
    /// 403 that has nothing to do with a licence.
    #[error("the hub refuses `{what}`: a token of another kind may be needed, with the right to read it{said}")]
    Forbidden {
        /// What was wanted.
        what: String,
        /// What the hub says, with a separator before it, or nothing.
        said: String,
    },
    /// 404 for the repository.
    #[error("there is no repository `{repository}` on {hub}: look for a slip in its name")]
    NoRepository {
        /// What was wanted.
        repository: String,
        /// Who was asked.
        hub: String,
    },
    /// 404 for the revision.
    #[error("`{repository}` has no revision `{revision}`: its branches and tags are at {page}")]
    NoRevision {
        /// What was wanted.
        repository: String,
        /// What was wanted of it.
        revision: String,
        /// Where the revisions are listed.
        page: String,
    },
    /// 404 for a file that the listing names.
    #[error("`{repository}` lists the file `{path}` and does not have it: try again, or another --revision")]
    NoFile {
        /// What was wanted.
        repository: String,
        /// The file.
        path: String,
    },
    /// 429 for longer than is waited.
    #[error(
        "the hub is asked too often from here and wants {} more seconds of rest: try again after that; with a token in HF_TOKEN it takes more",
        wait_seconds
    )]
    RateLimited {
        /// What it asked for last.
        wait_seconds: u64,
    },
    /// Another status.
    #[error("the hub answers {status} for `{what}`, {tries} times in a row{said}")]
    Status {
        /// The status.
        status: u16,
        /// What was wanted.
        what: String,
        /// So often.
        tries: u32,
        /// What the hub says, with a separator before it, or nothing.
        said: String,
    },
    /// No connection at all.
    #[error("{host} cannot be reached: {reason}; HTTPS_PROXY names a proxy, HF_ENDPOINT another hub")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// The connection ends again and again before the file does.
    #[error(
        "the connection broke off {tries} times in a row, with {received} of {bytes} bytes of `{path}` here: {reason}; the same command goes on from there"
    )]
    Cut {
        /// The file.
        path: String,
        /// So much is here.
        received: u64,
        /// So much there is.
        bytes: u64,
        /// So often, without a byte in between.
        tries: u32,
        /// What the system says.
        reason: String,
    },
    /// What came is not what the hub lists.
    #[error(
        "`{path}` came damaged: its {kind} is {found}, and the hub lists {expected}; it is deleted, the same command fetches it again"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Which checksum.
        kind: &'static str,
        /// What the hub lists.
        expected: String,
        /// What came.
        found: String,
    },
    /// Too little room, found out before anything is fetched.
    #[error(
        "{} are to be fetched and {} are free in `{}`: make room, or name another place with --to or HF_HOME", gibibytes(*needed), gibibytes(*free), place.display()
    )]
    NoRoom {
        /// Bytes to be fetched.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        place: PathBuf,
    },
    /// The disk has filled up meanwhile.
    #[error("the disk is full at `{}`: make room; the same command goes on from here", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// Something of the file system.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file system has no locks. Found out before anything is fetched.
    #[error(
        "`{}` cannot be locked ({source}), and without locks two processes may write one file: name a folder of another file system with HF_HUB_CACHE, or with --to", lock.display()
    )]
    NoLocks {
        /// The file that was to be locked.
        lock: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process is at it.
    #[error("another process is fetching `{path}` (it holds `{}`): wait for it, or end it", lock.display())]
    Busy {
        /// The file.
        path: String,
        /// What says so.
        lock: PathBuf,
    },
    /// The repository is something else than a pipeline in diffusers' folders.
    #[error("`{repository}` has no {missing}: only repositories with diffusers' folders can be fetched")]
    NotAPipeline {
        /// What was wanted.
        repository: String,
        /// What it lacks.
        missing: String,
    },
    /// An answer that is none.
    #[error("{host} does not answer as a hub does: {reason}")]
    Malformed {
        /// Who was asked.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The client could not be made.
    #[error("asking the hub is not possible: {0}")]
    Client(String),
    /// A token's file that holds none.
    #[error("the file `{}`: {reason}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Does not repeat what stands there.
        reason: String,
    },
}

impl HubError {
    /// What the file system says of `path`.
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
    fn a_disk_that_is_full_has_its_own_words() {
        let full = HubError::file("/models/blob", io::ErrorKind::StorageFull.into()).to_string();
        assert!(full.starts_with("the disk is full at `/models/blob`") && full.contains("goes on"), "{full}");
        let other = HubError::file("/models/blob", io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(other.starts_with("`/models/blob`: permission denied"), "{other}");
    }
}
