//! What a download wants of a file system that some do not have: locks, and links. Shares, FAT and exFAT, and much of what
//! FUSE mounts lack one or the other.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// The ways to locks and links: the system's, unless others are wanted.
#[derive(Clone, Copy)]
pub struct FileSystem {
    /// Takes the lock of a file, if nobody else has it.
    pub try_lock: fn(&File) -> Result<(), TryLockError>,
    /// Has the second path lead to the first.
    pub symbolic_link: fn(&Path, &Path) -> io::Result<()>,
    /// Gives the file at the first path the second one as well.
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

/// They need rights there that few have.
#[cfg(not(unix))]
fn symbolic_link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
