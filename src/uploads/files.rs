//! The files of uploads: one folder, a temporary name while a file is written, and a name of its owner and id when it is
//! complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::error::UploadError;
use super::id::UploadId;
use crate::decode::{FILE_BYTES_MAX, ImageHeader, inspect};
use crate::domain::ids::KeyId;
use crate::store::private_file::{create_private_folder, open_private};

/// The extension of an incomplete file.
const PART: &str = "part";

/// The folder. Its functions block.
#[derive(Debug, Clone)]
pub(super) struct UploadFiles {
    folder: PathBuf,
}

/// A file that is being written, under a temporary name. Dropping it removes what was written.
pub(super) struct PartFile {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    bytes: usize,
}

/// A complete file that has no name yet.
pub(super) struct Written {
    pub(super) id: UploadId,
    pub(super) bytes: u64,
    part: PartFile,
}

/// What is in the folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Complete files.
    pub(super) complete: Vec<(KeyId, UploadId)>,
    /// Incomplete ones.
    parts: Vec<PathBuf>,
}

impl UploadFiles {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The file of an upload.
    pub(super) fn path(&self, owner: KeyId, id: &UploadId) -> PathBuf {
        self.folder.join(format!("{owner}_{id}"))
    }

    /// Begins a file.
    pub(super) fn begin(&self) -> io::Result<PartFile> {
        create_private_folder(&self.folder)?;
        let path = self.folder.join(format!("{}.{PART}", Uuid::now_v7().simple()));
        let file = open_private(OpenOptions::new().write(true).create_new(true), &path)?;
        Ok(PartFile { file, path, hasher: Sha256::new(), bytes: 0 })
    }

    /// Gives a file its name, which may be there with the same content.
    pub(super) fn name(&self, owner: KeyId, written: &Written) -> io::Result<()> {
        fs::rename(&written.part.path, self.path(owner, &written.id))?;
        // The folder stores the name, and the one above it may just have got the folder.
        let above = self.folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(&self.folder)?.sync_all()?;
        File::open(above)?.sync_all()
    }

    /// Removes a file; a missing one is no error.
    pub(super) fn remove(&self, owner: KeyId, id: &UploadId) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path(owner, id)))
    }

    /// What is in the folder. Files with other names belong to someone else.
    pub(super) fn find(&self) -> io::Result<Found> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
            entries => entries?,
        };
        let mut found = Found::default();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == PART) {
                found.parts.push(path);
                continue;
            }
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('_'));
            found.complete.extend(name.and_then(|(owner, id)| Some((owner.parse().ok()?, id.parse().ok()?))));
        }
        Ok(found)
    }

    /// Removes incomplete files, which nothing must be writing. Returns how many.
    pub(super) fn remove_parts(found: &Found) -> io::Result<usize> {
        for part in &found.parts {
            ignore_missing(fs::remove_file(part))?;
        }
        Ok(found.parts.len())
    }
}

impl PartFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > FILE_BYTES_MAX {
            return Err(UploadError::TooLarge { bytes_max: FILE_BYTES_MAX });
        }
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Ends the file, once it is on the disk.
    pub(super) fn finish(mut self) -> io::Result<Written> {
        self.file.sync_all()?;
        let digest = std::mem::take(&mut self.hasher).finalize();
        Ok(Written { id: UploadId::of_sha256(digest.into()), bytes: self.bytes as u64, part: self })
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Missing if it has its name. If it stays, the next start removes it.
        drop(fs::remove_file(&self.path));
    }
}

impl Written {
    /// The file, and what its head says.
    pub(super) fn read(&self) -> Result<(Vec<u8>, ImageHeader), UploadError> {
        let bytes = fs::read(&self.part.path)?;
        let header = inspect(&bytes).map_err(UploadError::Rejected)?;
        Ok((bytes, header))
    }
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("one").file_name().into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = UploadFiles::new(folder.path().join("uploads"));
        let owner = KeyId::generate();
        let mut part = files.begin().expect("created");
        part.write(b"hel").expect("written");
        part.write(b"lo").expect("written");
        let written = part.finish().expect("on the disk");
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!((written.id.as_str(), written.bytes), (digest, 5));
        assert!(!files.path(owner, &written.id).exists());
        files.name(owner, &written).expect("named");
        let id = written.id.clone();
        drop(written);
        assert_eq!(names(&folder.path().join("uploads")), [format!("{owner}_{digest}")]);
        assert_eq!(files.find().expect("read").complete, [(owner, id.clone())]);
        files.remove(owner, &id).expect("removed");
        files.remove(owner, &id).expect("a missing file is no error");
        assert!(names(&folder.path().join("uploads")).is_empty());
    }

    #[test]
    fn what_is_too_large_or_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = UploadFiles::new(folder.path().to_owned());
        let mut part = files.begin().expect("created");
        part.write(&vec![0; FILE_BYTES_MAX]).expect("as large as may be");
        assert!(matches!(part.write(b"x"), Err(UploadError::TooLarge { bytes_max: FILE_BYTES_MAX })));
        assert_eq!(names(folder.path()).len(), 1);
        drop(part);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn parts_that_a_crash_has_left_are_removed_and_other_files_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = UploadFiles::new(folder.path().to_owned());
        for name in ["left.part", "notes.txt", "mine_too"] {
            fs::write(folder.path().join(name), "x").expect("written");
        }
        let found = files.find().expect("read");
        assert!(found.complete.is_empty());
        assert_eq!(UploadFiles::remove_parts(&found).expect("removed"), 1);
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, ["mine_too", "notes.txt"]);
        let none = UploadFiles::new(folder.path().join("none")).find().expect("no folder");
        assert!(none.complete.is_empty() && none.parts.is_empty());
    }
}
