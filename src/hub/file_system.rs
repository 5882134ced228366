//! Locks and links, which a download needs and some file systems lack: network shares, FAT and exFAT, many FUSE mounts.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::HubError;

/// Functions that make locks and links. Tests replace the system's.
#[derive(Clone, Copy)]
pub struct FileSystem {
    /// Takes the lock of a file, unless another process has it.
    pub try_lock: fn(&File) -> Result<(), TryLockError>,
    /// Makes the second path a symbolic link to the first.
    pub symbolic_link: fn(&Path, &Path) -> io::Result<()>,
    /// Makes the second path another name of the file at the first.
    pub hard_link: fn(&Path, &Path) -> io::Result<()>,
}

impl Default for FileSystem {
    fn default() -> Self {
        Self { try_lock: File::try_lock, symbolic_link, hard_link }
    }
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSystem").finish_non_exhaustive()
    }
}

fn hard_link(file: &Path, also: &Path) -> io::Result<()> {
    fs::hard_link(file, also)
}

#[cfg(unix)]
fn symbolic_link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// On other systems they need rights that few users have.
#[cfg(not(unix))]
fn symbolic_link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Creates the parent folder of a file.
pub(super) fn make_folder_of(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(|error| HubError::file(folder, error)),
        None => Ok(()),
    }
}
