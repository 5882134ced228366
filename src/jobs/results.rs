//! Images as files.
//!
//! A file is written beside its place and renamed into it, so that a half-written image is never served.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, SystemTime};

use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

const UNFINISHED_EXTENSION: &str = "part";
/// About what a small image takes, so that a disk that takes the proof takes an image, too.
const PROBE_BYTES: usize = 64 * 1024;
/// Names looked at in one go.
const PAGE_FILES: usize = 1000;

/// The folder of images. Its functions block; async callers take them off their threads.
#[derive(Debug, Clone)]
pub(super) struct ResultFiles {
    directory: PathBuf,
    /// Held while the folder is tried: of a disk that hangs one thread waits, and not one for everyone who asks.
    probing: Arc<Mutex<()>>,
}

/// Names of images in the folder that have been there for some time, page by page.
pub(super) struct OldImages {
    entries: fs::ReadDir,
    age_min: Duration,
}

impl ResultFiles {
    /// Makes the folder, and removes what a crash left half written.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        make_private(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED_EXTENSION)
                && let Err(error) = fs::remove_file(&path)
            {
                // No reason not to draw.
                tracing::warn!(%error, file = %path.display(), "a half-written image cannot be removed");
            }
        }
        Ok(Self { directory: directory.to_owned(), probing: Arc::default() })
    }

    pub(super) fn path(&self, id: JobId, format: OutputFormat) -> PathBuf {
        self.directory.join(format!("{id}.{}", format.extension()))
    }

    /// Writes an image that survives a crash of the machine once this has returned. A folder that is gone is made anew.
    pub(super) fn write(&self, id: JobId, format: OutputFormat, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.unfinished(&id.to_string());
        let written = self.write_unfinished(&unfinished, bytes);
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, self.path(id, format))) {
            // Where the disk is full, the half-written file is what fills it.
            drop(fs::remove_file(&unfinished));
            return Err(error);
        }
        File::open(&self.directory)?.sync_all()
    }

    /// Proves that an image could be written now: writes as much, has the disk confirm it, and removes it.
    pub(super) fn probe(&self) -> io::Result<()> {
        let _turn = match self.probing.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk has not confirmed the last try yet"));
            }
        };
        let path = self.unfinished(&format!("probe-{}", std::process::id()));
        let written = self.write_unfinished(&path, &vec![0x5a; PROBE_BYTES]);
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    fn unfinished(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.{UNFINISHED_EXTENSION}"))
    }

    fn write_unfinished(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = match create_private(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_private(&self.directory)?;
                tracing::warn!(folder = %self.directory.display(), "the folder of results was gone and is made anew");
                create_private(path)
            }
            file => file,
        };
        let mut file = file?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Removes an image, and says how many bytes that gave back; one that is not there is fine.
    pub(super) fn remove(&self, id: JobId, format: OutputFormat) -> io::Result<u64> {
        let path = self.path(id, format);
        let bytes = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        match fs::remove_file(path) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The images that have been in the folder for `age_min`.
    pub(super) fn old_images(&self, age_min: Duration) -> io::Result<OldImages> {
        Ok(OldImages { entries: fs::read_dir(&self.directory)?, age_min })
    }
}

impl OldImages {
    /// Some more of them; `None` when there are no more.
    pub(super) fn next_page(&mut self) -> Option<Vec<(JobId, OutputFormat)>> {
        let page: Vec<_> = self.entries.by_ref().take(PAGE_FILES).collect();
        let old = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let (id, extension) = name.split_once('.')?;
            let format = OutputFormat::ALL.into_iter().find(|format| format.extension() == extension)?;
            let (now, written_at) = (SystemTime::now(), entry.metadata().ok()?.modified().ok()?);
            // One of the future was written while the clock was ahead, or the clock was set back since.
            let age = now.duration_since(written_at).unwrap_or_else(|ahead| ahead.duration());
            Some((id.parse().ok()?, format)).filter(|_| age >= self.age_min)
        };
        (!page.is_empty()).then(|| page.into_iter().filter_map(old).collect())
    }
}

/// How large the file system is that holds, or is to hold, a folder of results.
///
/// # Errors
/// When it cannot be asked.
pub fn results_disk_bytes(directory: &Path) -> io::Result<u64> {
    let directory = std::path::absolute(directory)?;
    let there = directory.ancestors().find(|folder| folder.exists()).unwrap_or(&directory);
    fs4::total_space(there)
}

/// Writes as much into a folder of results as an image takes, and removes it again.
///
/// # Errors
/// When the disk does not take it.
pub fn try_results(directory: &Path) -> io::Result<()> {
    ResultFiles { directory: directory.to_owned(), probing: Arc::default() }.probe()
}

/// Makes the folder for this user alone; one that is there and open to others is closed to them.
fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        builder.mode(0o700);
        builder.create(directory)?;
        let is_open = fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
        if is_open && let Err(error) = fs::set_permissions(directory, fs::Permissions::from_mode(0o700)) {
            // Of another user, perhaps a mounted volume. Its images are private all the same.
            tracing::warn!(%error, folder = %directory.display(), "others on this machine may list the results");
        }
        Ok(())
    }
    #[cfg(not(unix))]
    builder.create(directory)
}

/// Makes a file for this user alone.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn images_are_this_users_alone_even_where_the_folder_was_open() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = folder.path().join("results");
        fs::create_dir(&directory).expect("writable");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("ours");
        let files = ResultFiles::open(&directory).expect("a usable folder");
        let id = JobId::generate();
        files.write(id, OutputFormat::Png, b"whole").expect("writable");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&files.path(id, OutputFormat::Png))), (0o700, 0o600));
    }

    #[test]
    fn files_appear_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("job_x.part"), b"half").expect("writable");
        let files = ResultFiles::open(folder.path()).expect("a usable folder");
        assert!(!folder.path().join("job_x.part").exists());
        let id = JobId::generate();
        files.write(id, OutputFormat::Png, b"whole").expect("writable");
        assert_eq!(fs::read(files.path(id, OutputFormat::Png)).expect("there"), b"whole");
        files.remove(id, OutputFormat::Png).expect("removable");
        files.remove(id, OutputFormat::Png).expect("not there is fine");
    }
}
