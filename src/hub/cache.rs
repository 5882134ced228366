//! The cache that Hugging Face's own tools share. Its layout is upstream's: `hf-hub` says where repositories, refs and
//! snapshots are. A blob is named by its checksum; a snapshot is a folder of links to blobs; a ref holds the commit of a
//! branch. On a file system without links, a snapshot's files are the blobs themselves.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::CacheRepo;

use super::checksum::{Checksum, checksum_of};
use super::file_system::make_folder_of;
use super::listing::RemoteFile;
use super::repository::{RepositoryId, Revision};
use super::{FileSystem, HubError, HubSettings, folder};

/// A repository's part of the cache, at one revision.
pub(super) struct Cache {
    upstream: CacheRepo,
    revision: Revision,
    /// The repository's folder.
    folder: PathBuf,
    /// Folder of its locks.
    locks: PathBuf,
    file_system: FileSystem,
}

impl Cache {
    /// `None` when no cache folder is configured.
    pub(super) fn of(settings: &HubSettings, repository: &RepositoryId, revision: &Revision) -> Option<Self> {
        let root = hf_hub::Cache::new(settings.cache_dir.clone()?);
        let repo = repository.at(revision);
        Some(Self {
            folder: root.path().join(repo.folder_name()),
            locks: root.path().join(".locks").join(repo.folder_name()),
            upstream: root.repo(repo),
            revision: revision.clone(),
            file_system: settings.file_system,
        })
    }

    /// Upstream has this path as well, but only together with its HTTP client.
    pub(super) fn blob(&self, checksum: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(checksum.digits())
    }

    pub(super) fn lock(&self, checksum: &Checksum) -> PathBuf {
        self.locks.join(format!("{}.lock", checksum.digits()))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.upstream.pointer_path(commit)
    }

    /// The snapshot of the revision when it was last fetched.
    fn current_snapshot(&self) -> Option<PathBuf> {
        if self.revision.is_commit() {
            return Some(self.snapshot(self.revision.as_str()));
        }
        // The folder itself, by way of the ref. A damaged ref would lead anywhere.
        let found = self.upstream.get(".")?;
        let commit: Revision = found.file_name()?.to_str()?.parse().ok()?;
        let snapshot = self.snapshot(commit.as_str());
        (commit.is_commit() && found == snapshot).then_some(snapshot)
    }

    /// Whether the branch leads to a snapshot of another commit, which may be complete.
    pub(super) fn leads_elsewhere(&self, commit: &str) -> bool {
        self.current_snapshot().is_some_and(|current| current != self.snapshot(commit) && current.is_dir())
    }

    /// Records the commit of a branch or tag.
    pub(super) fn note(&self, commit: &str) -> Result<(), HubError> {
        if self.revision.is_commit() {
            return Ok(());
        }
        self.upstream.create_ref(commit).map_err(|error| HubError::file(self.folder.join("refs"), error))
    }

    /// Whether a file is present: as a blob, which gets its name after its checksum was verified, or in the snapshot itself
    /// on a file system without links.
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
        // Another tool has put it there.
        let found = checksum_of(&place, &file.checksum).map_err(|error| HubError::file(&place, error))?;
        if found == file.checksum {
            folder::note(&snapshot, &file.path, commit, &file.checksum)?;
        }
        Ok(found == file.checksum)
    }

    /// Links a snapshot's file to its blob. On a file system without symbolic links the file becomes the blob; `is_last`
    /// says that no other file needs that blob.
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
        // As Python's tools do, so that they find it here.
        (self.file_system.hard_link)(&blob, &link)
            .or_else(|_| if is_last { fs::rename(&blob, &link) } else { fs::copy(&blob, &link).map(drop) })
            .map_err(|error| HubError::file(link, error))?;
        folder::note(&snapshot, path, commit, checksum)
    }
}

/// Whether `path` is a file of this size, and not a link to one.
fn is_plain_file(path: &Path, bytes: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes)
}

/// The folder of a repository's files at a revision, if the cache has one. It may be incomplete.
pub fn cached(settings: &HubSettings, repository: &RepositoryId, revision: &Revision) -> Option<PathBuf> {
    let folder = Cache::of(settings, repository, revision)?.current_snapshot()?;
    folder.is_dir().then_some(folder)
}

/// Takes the lock that keeps two processes from writing one file. Dropping the value releases it, as does any end of the
/// process.
pub(super) fn lock(path: &str, lock: &Path, file_system: FileSystem) -> Result<File, HubError> {
    make_folder_of(lock)?;
    let file = File::options().create(true).append(true).open(lock).map_err(|error| HubError::file(lock, error))?;
    match (file_system.try_lock)(&file) {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(HubError::Busy { path: path.to_owned(), lock: lock.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(HubError::NoLocks { lock: lock.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Patience, Proxy};

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_ref_leads_to_its_snapshot_and_a_damaged_one_nowhere() {
        let home = tempfile::tempdir().expect("a folder");
        let root = home.path().join("hub");
        let settings = HubSettings {
            endpoint: "http://hub.invalid".to_owned(),
            token: None,
            token_file: None,
            cache_dir: Some(root.clone()),
            is_offline: true,
            proxy: Proxy::default(),
            patience: Patience::default(),
            file_system: FileSystem::default(),
        };
        let repository: RepositoryId = "owner/name".parse().expect("an id");
        let snapshots = root.join("models--owner--name/snapshots");
        for folder in [COMMIT, "main"] {
            fs::create_dir_all(snapshots.join(folder)).expect("made");
        }
        let revision: Revision = "refs/pr/7".parse().expect("a revision");
        let cache = Cache::of(&settings, &repository, &revision).expect("a cache");
        assert_eq!(cached(&settings, &repository, &revision), None);
        cache.note(COMMIT).expect("written");
        let reference = root.join("models--owner--name/refs/refs/pr/7");
        assert_eq!(fs::read_to_string(&reference).expect("a ref"), COMMIT);
        assert_eq!(cached(&settings, &repository, &revision), Some(snapshots.join(COMMIT)));
        assert_eq!(cached(&settings, &repository, &COMMIT.parse().expect("a commit")), Some(snapshots.join(COMMIT)));
        // Cut off by a crash, not a commit, and leading out of the cache.
        for damaged in ["", "main", &format!("../../{COMMIT}"), home.path().to_str().expect("text")] {
            fs::create_dir_all(snapshots.join(damaged)).expect("made");
            fs::write(&reference, damaged).expect("written");
            assert_eq!(cached(&settings, &repository, &revision), None, "{damaged:?}");
        }
    }
}
