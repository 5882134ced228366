//! Result files.
//!
//! A file is written under a temporary name and renamed, so that an incomplete image is never served.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, SystemTime};

use super::bucket::Waiting;
use super::private_files::{create_private, create_private_folder};
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

const UNFINISHED_EXTENSION: &str = "part";
/// What the names of such files begin with: that of a job's image, and that of a probe. Others may have files there.
const UNFINISHED_PREFIXES: [&str; 2] = ["job_", PROBE_PREFIX];
const PROBE_PREFIX: &str = "probe-";
/// About the size of a small image, so that a disk that passes the probe has room for an image.
const PROBE_BYTES: usize = 64 * 1024;
/// File names per page.
const PAGE_FILES: usize = 1000;

/// The folder of images. Its functions block; async callers run them on other threads.
#[derive(Debug, Clone)]
pub(super) struct ResultFiles {
    directory: PathBuf,
    /// Held during a probe: if the disk hangs, one thread waits, and not one per probe.
    probing: Arc<Mutex<()>>,
}

/// What the folder has.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// All images in it.
    pub(super) all: Waiting,
    /// Some of them, in the order of their jobs.
    pub(super) page: BTreeSet<(JobId, OutputFormat)>,
}

/// Old images in the folder, page by page.
pub(super) struct OldImages {
    entries: fs::ReadDir,
    age_min: Duration,
}

impl ResultFiles {
    /// Creates the folder, and removes incomplete files that a crash left.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        create_private_folder(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if is_unfinished(&path)
                && let Err(error) = fs::remove_file(&path)
            {
                // No reason not to serve.
                tracing::warn!(%error, file = %path.display(), "an incomplete image cannot be removed");
            }
        }
        Ok(Self { directory: directory.to_owned(), probing: Arc::default() })
    }

    pub(super) fn path(&self, id: JobId, format: OutputFormat) -> PathBuf {
        self.directory.join(format!("{id}.{}", format.extension()))
    }

    /// Writes an image durably: it survives a crash of the machine. A missing folder is created again.
    pub(super) fn write(&self, id: JobId, format: OutputFormat, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.unfinished(&id.to_string());
        let written = self.write_unfinished(&unfinished, bytes);
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, self.path(id, format))) {
            // On a full disk the incomplete file takes the space.
            drop(fs::remove_file(&unfinished));
            return Err(error);
        }
        File::open(&self.directory)?.sync_all()
    }

    /// Proves that an image could be written now: writes and syncs as much, and removes it.
    pub(super) fn probe(&self) -> io::Result<()> {
        let _turn = match self.probing.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the last probe of the disk has not ended yet"));
            }
        };
        let path = self.unfinished(&format!("{PROBE_PREFIX}{}", std::process::id()));
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
                create_private_folder(&self.directory)?;
                tracing::warn!(folder = %self.directory.display(), "the results folder was missing and is created again");
                create_private(path)
            }
            file => file,
        };
        let mut file = file?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Removes an image and returns the bytes freed; a missing one is no error.
    pub(super) fn remove(&self, id: JobId, format: OutputFormat) -> io::Result<u64> {
        let path = self.path(id, format);
        let bytes = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        match fs::remove_file(path) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The images in the folder, and the first `page_images` of them whose jobs are younger than `after`.
    pub(super) fn survey(&self, after: Option<JobId>, page_images: usize) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let entries = match fs::read_dir(&self.directory) {
            // The next image creates it again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(survey),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Some((id, format)) = image_of(&entry) else { continue };
            // One that is gone by now does not count.
            let Ok(metadata) = entry.metadata() else { continue };
            survey.all.add(metadata.len());
            if after.is_none_or(|after| id > after) {
                survey.page.insert((id, format));
                if survey.page.len() > page_images {
                    survey.page.pop_last();
                }
            }
        }
        Ok(survey)
    }

    /// The images older than `age_min`.
    pub(super) fn old_images(&self, age_min: Duration) -> io::Result<OldImages> {
        Ok(OldImages { entries: fs::read_dir(&self.directory)?, age_min })
    }
}

impl OldImages {
    /// The next page; `None` at the end.
    pub(super) fn next_page(&mut self) -> Option<Vec<(JobId, OutputFormat)>> {
        let page: Vec<_> = self.entries.by_ref().take(PAGE_FILES).collect();
        let old = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let (id, format) = image_of(&entry)?;
            let (now, written_at) = (SystemTime::now(), entry.metadata().ok()?.modified().ok()?);
            // A future date: the clock was ahead then, or has been set back since.
            let age = now.duration_since(written_at).unwrap_or_else(|ahead| ahead.duration());
            Some((id, format)).filter(|_| age >= self.age_min)
        };
        (!page.is_empty()).then(|| page.into_iter().filter_map(old).collect())
    }
}

/// Whether a file is an incomplete one of ours, by its name.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_ours = UNFINISHED_PREFIXES.iter().any(|prefix| name.starts_with(*prefix));
    is_ours && path.extension().is_some_and(|extension| extension == UNFINISHED_EXTENSION)
}

/// The image that a file is, by its name.
fn image_of(entry: &fs::DirEntry) -> Option<(JobId, OutputFormat)> {
    let name = entry.file_name().into_string().ok()?;
    let (id, extension) = name.split_once('.')?;
    let format = OutputFormat::ALL.into_iter().find(|format| format.extension() == extension)?;
    Some((id.parse().ok()?, format))
}

/// Size of the file system that holds, or will hold, a results folder.
///
/// # Errors
/// When it cannot be read.
pub fn results_disk_bytes(directory: &Path) -> io::Result<u64> {
    let directory = std::path::absolute(directory)?;
    let there = directory.ancestors().find(|folder| folder.exists()).unwrap_or(&directory);
    fs4::total_space(there)
}

/// Probes a results folder: writes as much as an image takes, and removes it.
///
/// # Errors
/// When the write fails.
pub fn try_results(directory: &Path) -> io::Result<()> {
    ResultFiles { directory: directory.to_owned(), probing: Arc::default() }.probe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn images_are_private_even_if_the_folder_was_open() {
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
    fn a_survey_counts_all_images_and_lists_the_oldest_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = ResultFiles::open(folder.path()).expect("a usable folder");
        let id =
            |number: u8| format!("job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e{number:02x}").parse::<JobId>().expect("an id");
        for number in [7, 3, 5, 1] {
            files.write(id(number), OutputFormat::Png, b"an image").expect("writable");
        }
        fs::write(folder.path().join("notes.txt"), "not an image").expect("writable");
        let page = |after: Option<u8>| {
            let survey = files.survey(after.map(id), 2).expect("readable");
            assert_eq!(survey.all.images, 4);
            survey.page.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(page(None), [id(1), id(3)]);
        assert_eq!(page(Some(3)), [id(5), id(7)]);
        assert!(page(Some(7)).is_empty());
        fs::remove_dir_all(folder.path()).expect("removable");
        assert_eq!(files.survey(None, 2).expect("no folder, no images").all, Waiting::default());
    }

    #[test]
    fn files_appear_complete_and_leftovers_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["job_x.part", "probe-1.part", "film.part"] {
            fs::write(folder.path().join(name), b"half").expect("writable");
        }
        let files = ResultFiles::open(folder.path()).expect("a usable folder");
        let is_there = |name: &str| folder.path().join(name).exists();
        assert!(!is_there("job_x.part") && !is_there("probe-1.part"));
        assert!(is_there("film.part"), "it is somebody else's");
        let id = JobId::generate();
        files.write(id, OutputFormat::Png, b"whole").expect("writable");
        assert_eq!(fs::read(files.path(id, OutputFormat::Png)).expect("there"), b"whole");
        files.remove(id, OutputFormat::Png).expect("removable");
        files.remove(id, OutputFormat::Png).expect("a missing file is no error");
    }
}
