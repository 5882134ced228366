//! Reads files of a checkpoint, whether it is a folder or part of the program.

use std::fs::File;
use std::io;

use memmap2::Mmap;

use crate::domain::model::ModelFiles;

use super::report::Problem;

/// Longest configuration or tokenizer file that is read.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// A whole file, mapped or embedded.
pub(super) enum Blob {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

/// The files of a checkpoint, by their paths inside it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(&'a ModelFiles);

impl<'a> Source<'a> {
    pub(super) fn new(files: &'a ModelFiles) -> Self {
        Self(files)
    }

    /// Where the files are, for messages.
    pub(super) fn place(self) -> String {
        match self.0 {
            ModelFiles::Directory(directory) => directory.display().to_string(),
            ModelFiles::Embedded(_) => "the program itself".to_owned(),
        }
    }

    /// Whether there is a place to look at.
    pub(super) fn is_there(self) -> bool {
        match self.0 {
            ModelFiles::Directory(directory) => std::fs::read_dir(directory).is_ok(),
            ModelFiles::Embedded(_) => true,
        }
    }

    /// Opens a file; `None` where there is none of that name.
    pub(super) fn open(self, path: &str) -> io::Result<Option<Blob>> {
        match self.0 {
            ModelFiles::Embedded(files) => {
                let file = files.iter().find(|file| file.path == path);
                Ok(file.map(|file| Blob::Embedded(file.bytes)))
            }
            ModelFiles::Directory(directory) => match File::open(directory.join(path)) {
                Ok(file) => map(&file).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether there is a file of that name.
    pub(super) fn contains(self, path: &str) -> bool {
        match self.0 {
            ModelFiles::Embedded(files) => files.iter().any(|file| file.path == path),
            ModelFiles::Directory(directory) => directory.join(path).is_file(),
        }
    }

    /// Names of the files at the top, sorted.
    pub(super) fn top_level_files(self) -> Vec<String> {
        let mut names: Vec<String> = match self.0 {
            ModelFiles::Embedded(files) => {
                files.iter().map(|file| file.path.to_owned()).filter(|path| !path.contains('/')).collect()
            }
            ModelFiles::Directory(directory) => std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
        };
        names.sort();
        names
    }

    /// A text file; `None` where there is none, or where it cannot be read, which is a problem.
    pub(super) fn text(self, path: &str, problems: &mut Vec<Problem>) -> Option<String> {
        let blob = match self.open(path) {
            Ok(blob) => blob?,
            Err(error) => {
                problems.push(Problem::unreadable(path, error));
                return None;
            }
        };
        let bytes = blob.as_ref();
        if bytes.len() > TEXT_BYTES_MAX {
            problems.push(Problem::unreadable(path, format!("longer than {TEXT_BYTES_MAX} bytes")));
            return None;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Some(text.to_owned()),
            Err(error) => {
                problems.push(Problem::unreadable(path, format!("not UTF-8: {error}")));
                None
            }
        }
    }

    /// A text file whose absence is a problem.
    pub(super) fn required_text(self, path: &str, problems: &mut Vec<Problem>) -> Option<String> {
        let before = problems.len();
        let text = self.text(path, problems);
        if text.is_none() && problems.len() == before {
            problems.push(Problem::missing(path));
        }
        text
    }
}

fn map(file: &File) -> io::Result<Blob> {
    if file.metadata()?.len() == 0 {
        // An empty file cannot be mapped.
        return Ok(Blob::Embedded(&[]));
    }
    // SAFETY: a mapping is undefined behaviour if another process cuts the file short while it is in use. Checkpoints
    // are written once and then only read; the alternative, a second copy of 24 GB in memory, is worse.
    #[expect(unsafe_code, reason = "weights are mapped rather than copied")]
    let map = unsafe { Mmap::map(file)? };
    Ok(Blob::Mapped(map))
}
