//! The cache that Hugging Face's own tools share: `models--OWNER--NAME/{blobs,refs,snapshots}` below one folder. A blob is
//! called by its checksum; a snapshot is a folder of links to blobs; a ref says which commit a branch stood at.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::checksum::Checksum;
use super::repository::{RepositoryId, Revision};
use super::{HubError, HubSettings};

/// Where things are, or would be.
pub(super) struct Cache {
    /// Of all repositories.
    root: PathBuf,
    repository: String,
}

impl Cache {
    pub(super) fn of(root: &Path, repository: &RepositoryId) -> Self {
        Self { root: root.to_owned(), repository: repository.folder_name() }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.repository)
    }

    pub(super) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.folder().join("blobs").join(checksum.digits())
    }

    pub(super) fn lock(&self, checksum: &Checksum) -> PathBuf {
        self.root.join(".locks").join(&self.repository).join(format!("{}.lock", checksum.digits()))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    fn reference(&self, revision: &Revision) -> PathBuf {
        self.folder().join("refs").join(revision.as_str())
    }

    /// The commit that a revision stood at when it was last fetched.
    pub(super) fn commit(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_owned());
        }
        let text = fs::read_to_string(self.reference(revision)).ok()?;
        let commit: Revision = text.trim().parse().ok()?;
        commit.is_commit().then(|| text.trim().to_owned())
    }

    /// Notes the commit of a branch or tag.
    pub(super) fn note(&self, revision: &Revision, commit: &str) -> Result<(), HubError> {
        if revision.is_commit() {
            return Ok(());
        }
        let path = self.reference(revision);
        make_folder_of(&path)?;
        fs::write(&path, commit).map_err(|error| HubError::file(path, error))
    }

    /// Makes a snapshot's file lead to its blob.
    pub(super) fn link(&self, commit: &str, path: &str, checksum: &Checksum) -> Result<(), HubError> {
        let (link, blob) = (self.snapshot(commit).join(path), self.blob(checksum));
        make_folder_of(&link)?;
        let up = "../".repeat(2 + path.split('/').count() - 1);
        let target = PathBuf::from(format!("{up}blobs/{}", checksum.digits()));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(HubError::file(link, error)),
            _ => {}
        }
        make_link(&target, &blob, &link).map_err(|error| HubError::file(link, error))
    }
}

#[cfg(unix)]
fn make_link(target: &Path, _: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need rights there that few have. The blob moves instead, as Python's tools do it.
#[cfg(not(unix))]
fn make_link(_: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::rename(blob, link))
}

/// The folder of a repository's files at a revision, where the cache has one. Whether all files are there is not known.
pub fn cached(settings: &HubSettings, repository: &RepositoryId, revision: &Revision) -> Option<PathBuf> {
    let cache = Cache::of(settings.cache_dir.as_deref()?, repository);
    let folder = cache.snapshot(&cache.commit(revision)?);
    folder.is_dir().then_some(folder)
}

/// Makes the folder that a file is to stand in.
pub(super) fn make_folder_of(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(|error| HubError::file(folder, error)),
        None => Ok(()),
    }
}

/// Takes what keeps two processes from writing one file. It is let go of with the value, however the process ends.
pub(super) fn lock(path: &str, lock: &Path) -> Result<File, HubError> {
    make_folder_of(lock)?;
    let file = File::options().create(true).append(true).open(lock).map_err(|error| HubError::file(lock, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(HubError::Busy { path: path.to_owned(), lock: lock.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(HubError::file(lock, error)),
    }
}
