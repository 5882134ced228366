//! The files of LoRAs: one folder, a temporary name while a file is written, and its id when it is complete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::error::LoraError;
use crate::domain::adapter::AdapterId;
use crate::store::private_file::{create_private_folder, open_private};

/// The extension of an incomplete file.
const PART: &str = "part";

/// The folder. Its functions block.
#[derive(Debug, Clone)]
pub(super) struct LoraFiles {
    folder: PathBuf,
}

/// A file that is being written, under a temporary name. Locked until it is complete or dropped, which removes it: so a sweep,
/// also one of another process, removes only what a crash has left.
pub(super) struct PartFile {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

/// A complete file that has no name yet, and what it holds.
pub(super) struct Written {
    pub(super) id: AdapterId,
    pub(super) bytes: u64,
    part: PartFile,
}

impl LoraFiles {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The file with this id.
    pub(super) fn path(&self, id: &AdapterId) -> PathBuf {
        id.file_in(&self.folder)
    }

    /// Begins a file of at most `bytes_max` bytes.
    pub(super) fn begin(&self, bytes_max: u64) -> io::Result<PartFile> {
        create_private_folder(&self.folder)?;
        let path = self.folder.join(format!("{}.{PART}", Uuid::now_v7().simple()));
        let file = open_private(OpenOptions::new().write(true).create_new(true), &path)?;
        // On a file system without locks, another process that starts now would remove it, and adding it fails.
        drop(file.try_lock());
        Ok(PartFile { file, path, hasher: Sha256::new(), bytes: 0, bytes_max })
    }

    /// Gives a file its name, which may be there with the same content.
    pub(super) fn name(&self, written: &Written) -> io::Result<()> {
        fs::rename(&written.part.path, self.path(&written.id))?;
        // The folder stores the name, and the one above it may just have got the folder.
        let above = self.folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(&self.folder)?.sync_all()?;
        File::open(above)?.sync_all()
    }

    /// Removes a file; a missing one is no error.
    pub(super) fn remove(&self, id: &AdapterId) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path(id)))
    }

    /// Removes incomplete files that nothing writes, and complete ones for which `is_known` is false. Returns how many.
    pub(super) fn sweep(&self, is_known: impl Fn(&AdapterId) -> bool) -> io::Result<usize> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let path = entry?.path();
            let is_left = match path.extension().and_then(|extension| extension.to_str()) {
                Some(PART) => !is_locked(&path),
                Some("safetensors") => {
                    let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
                    id.is_some_and(|id| !is_known(&id))
                }
                _ => false,
            };
            if is_left {
                ignore_missing(fs::remove_file(&path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl PartFile {
    /// Its path, for a reader.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LoraError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.bytes_max {
            return Err(LoraError::TooLarge { bytes_max: self.bytes_max });
        }
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Ends the file, once it is on the disk.
    pub(super) fn finish(mut self) -> io::Result<Written> {
        self.file.sync_all()?;
        let digest = std::mem::take(&mut self.hasher).finalize();
        Ok(Written { id: AdapterId::of_sha256(digest.into()), bytes: self.bytes, part: self })
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Missing if it has its name. If it stays, the next start removes it.
        drop(fs::remove_file(&self.path));
    }
}

impl Written {
    /// Its path, for a reader.
    pub(super) fn path(&self) -> &Path {
        self.part.path()
    }
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Whether a process is writing a file.
fn is_locked(part: &Path) -> bool {
    File::open(part).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
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
        let files = LoraFiles::new(folder.path().join("loras"));
        let mut part = files.begin(5).expect("created");
        part.write(b"hel").expect("written");
        assert_eq!(files.sweep(|_| false).expect("swept"), 0, "it is being written");
        part.write(b"lo").expect("written");
        let written = part.finish().expect("on the disk");
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!((written.id.as_str(), written.bytes), (digest, 5));
        assert!(!files.path(&written.id).exists());
        files.name(&written).expect("named");
        drop(written);
        assert_eq!(names(&folder.path().join("loras")), [format!("{digest}.safetensors")]);
        let known: AdapterId = digest.parse().expect("an id");
        assert_eq!(files.sweep(|id| *id == known).expect("swept"), 0);
        assert_eq!(files.sweep(|_| false).expect("swept"), 1, "without a row it is an orphan");
        assert!(!files.path(&known).exists());
    }

    #[test]
    fn what_is_too_large_or_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = LoraFiles::new(folder.path().to_owned());
        let mut part = files.begin(4).expect("created");
        assert!(matches!(part.write(b"hello"), Err(LoraError::TooLarge { bytes_max: 4 })));
        assert_eq!(names(folder.path()).len(), 1);
        drop(part);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_sweep_removes_what_a_crash_has_left_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = LoraFiles::new(folder.path().to_owned());
        for name in ["left.part", "notes.txt", "mine.safetensors"] {
            fs::write(folder.path().join(name), "x").expect("written");
        }
        assert_eq!(files.sweep(|_| false).expect("swept"), 1);
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, ["mine.safetensors", "notes.txt"]);
        assert_eq!(LoraFiles::new(folder.path().join("none")).sweep(|_| false).expect("no folder"), 0);
    }
}
