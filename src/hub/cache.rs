//! The cache that Hugging Face's own tools share: `models--OWNER--NAME/{blobs,refs,snapshots}` below one folder. A blob is
//! called by its checksum; a snapshot is a folder of links to blobs; a ref says which commit a branch stood at. Where a file
//! system has no such links, a snapshot's files are the blobs themselves.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::checksum::{Checksum, checksum_of};
use super::listing::RemoteFile;
use super::repository::{RepositoryId, Revision};
use super::{FileSystem, HubError, HubSettings, folder};

/// Where things are, or would be.
pub(super) struct Cache {
    /// Of all repositories.
    root: PathBuf,
    repository: String,
    file_system: FileSystem,
}

impl Cache {
    /// `None`: nothing says where it is.
    pub(super) fn of(settings: &HubSettings, repository: &RepositoryId) -> Option<Self> {
        let (root, file_system) = (settings.cache_dir.clone()?, settings.file_system);
        Some(Self { root, repository: repository.folder_name(), file_system })
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

    /// Whether a file is here: as a blob, which gets its name after it was compared, or in the snapshot itself, where links
    /// cannot be made.
    pub(super) fn has(&self, commit: &str, file: &RemoteFile) -> Result<bool, HubError> {
        let blob = self.blob(&file.checksum);
        if fs::metadata(&blob).is_ok_and(|found| found.is_file() && found.len() == file.bytes) {
            return Ok(true);
        }
        let snapshot = self.snapshot(commit);
        let place = snapshot.join(&file.path);
        if !is_plain_file(&place, file.bytes) {
            return Ok(false);
        }
        if folder::noted(&snapshot, &file.path).as_ref() == Some(&file.checksum) {
            return Ok(true);
        }
        // Somebody else has put it there.
        let found = checksum_of(&place, &file.checksum).map_err(|error| HubError::file(&place, error))?;
        if found == file.checksum {
            folder::note(&snapshot, &file.path, commit, &file.checksum)?;
        }
        Ok(found == file.checksum)
    }

    /// Makes a snapshot's file lead to its blob. Where the file system has no links that lead anywhere, it becomes the blob;
    /// `is_last` says that no other file is to be made of that.
    pub(super) fn link(&self, commit: &str, file: &RemoteFile, is_last: bool) -> Result<(), HubError> {
        let RemoteFile { path, bytes, checksum } = file;
        let (snapshot, blob) = (self.snapshot(commit), self.blob(checksum));
        let link = snapshot.join(path);
        make_folder_of(&link)?;
        let up = "../".repeat(2 + path.split('/').count() - 1);
        let target = PathBuf::from(format!("{up}blobs/{}", checksum.digits()));
        let is_the_blob = || is_plain_file(&link, *bytes) && folder::noted(&snapshot, path).as_ref() == Some(checksum);
        if fs::read_link(&link).is_ok_and(|found| found == target) || is_the_blob() {
            return Ok(());
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(HubError::file(link, error)),
            _ => {}
        }
        if (self.file_system.symbolic_link)(&target, &link).is_ok() {
            return Ok(());
        }
        // As Python's tools do it, which find it in this place.
        (self.file_system.hard_link)(&blob, &link)
            .or_else(|_| if is_last { fs::rename(&blob, &link) } else { fs::copy(&blob, &link).map(drop) })
            .map_err(|error| HubError::file(link, error))?;
        folder::note(&snapshot, path, commit, checksum)
    }
}

/// Whether something is a file of so many bytes, and no link to one.
fn is_plain_file(path: &Path, bytes: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes)
}

/// The folder of a repository's files at a revision, where the cache has one. Whether all files are there is not known.
pub fn cached(settings: &HubSettings, repository: &RepositoryId, revision: &Revision) -> Option<PathBuf> {
    let cache = Cache::of(settings, repository)?;
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
pub(super) fn lock(path: &str, lock: &Path, file_system: FileSystem) -> Result<File, HubError> {
    make_folder_of(lock)?;
    let file = File::options().create(true).append(true).open(lock).map_err(|error| HubError::file(lock, error))?;
    match (file_system.try_lock)(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(HubError::Busy { path: path.to_owned(), lock: lock.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(HubError::NoLocks { lock: lock.to_owned(), source }),
    }
}
