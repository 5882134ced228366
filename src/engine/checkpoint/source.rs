//! The files of a checkpoint, in a folder or embedded in the program.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rayon::prelude::*;

use crate::domain::model::EmbeddedFile;

use super::problem::Problem;

/// Bytes that one thread reads at a time.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// Longest configuration or tokenizer file that is read.
const SMALL_BYTES_MAX: usize = 64 << 20;

/// A file, on the disk or embedded in the program, which any thread can read at any offset.
///
/// It is not mapped: a process that reads a map is killed when the file is truncated or its disk fails. A read returns an
/// error instead.
#[derive(Debug)]
pub(super) struct Blob {
    path: String,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    OnDisk { file: File, bytes: usize },
    InMemory(Cow<'static, [u8]>),
}

impl Blob {
    /// A file embedded in the program.
    pub(super) fn embedded(path: &str, bytes: &'static [u8]) -> Self {
        Self { path: path.to_owned(), contents: Contents::InMemory(Cow::Borrowed(bytes)) }
    }

    /// A file that a test has made.
    #[cfg(test)]
    pub(super) fn made(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), contents: Contents::InMemory(Cow::Owned(bytes)) }
    }

    /// A copy of some of its bytes in the host's memory, read on all threads.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn part(&self, start: usize, bytes: usize) -> Result<Self, String> {
        // Zeroed memory costs nothing yet: the system maps each page when it is written, for the thread that writes it.
        let mut copy = vec![0; bytes];
        copy.par_chunks_mut(PIECE_BYTES)
            .enumerate()
            .try_for_each(|(index, out)| self.read(start + index * PIECE_BYTES, out))?;
        Ok(Self { path: self.path.clone(), contents: Contents::InMemory(Cow::Owned(copy)) })
    }

    /// Some of its bytes, where it is in the host's memory.
    pub(super) fn slice(&self, start: usize, bytes: usize) -> Option<&[u8]> {
        match &self.contents {
            Contents::OnDisk { .. } => None,
            Contents::InMemory(all) => all.get(start..start.checked_add(bytes)?),
        }
    }

    fn on_disk(path: &str, file: File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self { path: path.to_owned(), contents: Contents::OnDisk { file, bytes } })
    }

    /// Its path inside the checkpoint.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Its length when it was opened.
    pub(super) fn bytes(&self) -> usize {
        match &self.contents {
            Contents::OnDisk { bytes, .. } => *bytes,
            Contents::InMemory(bytes) => bytes.len(),
        }
    }

    /// Fills `out` with the bytes from `start` on.
    ///
    /// # Errors
    /// When it cannot be read, or was truncated: a message with the file and a hint.
    pub(super) fn read(&self, start: usize, out: &mut [u8]) -> Result<(), String> {
        let read = match &self.contents {
            Contents::OnDisk { file, .. } => file.read_exact_at(out, start as u64),
            Contents::InMemory(bytes) => match start.checked_add(out.len()).and_then(|end| bytes.get(start..end)) {
                Some(bytes) => {
                    out.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        };
        read.map_err(|error| {
            let path = &self.path;
            if error.kind() == io::ErrorKind::UnexpectedEof {
                format!(
                    "`{path}` was truncated after it was opened: download it again with `fluxserve models download`, and do \
                     not write to it while it is loaded"
                )
            } else {
                format!("`{path}` cannot be read: {error}; check its disk or network, and start again")
            }
        })
    }

    /// The complete file.
    fn read_all(&self) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.bytes()];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }
}

/// A folder of files, by their paths inside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    place: Place<'a>,
    /// Whether messages name its files without it.
    is_main: bool,
}

#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    Folder(&'a Path),
    Embedded(&'a [EmbeddedFile]),
}

impl<'a> Source<'a> {
    /// The folder that a message names once, at its beginning.
    pub(super) fn main(folder: &'a Path) -> Self {
        Self { place: Place::Folder(folder), is_main: true }
    }

    /// Another folder, which messages name with each file.
    pub(super) fn other(folder: &'a Path) -> Self {
        Self { place: Place::Folder(folder), is_main: false }
    }

    pub(super) fn embedded(files: &'a [EmbeddedFile]) -> Self {
        Self { place: Place::Embedded(files), is_main: true }
    }

    /// A file's path in messages.
    pub(super) fn shown(self, path: &str) -> String {
        match self.place {
            Place::Folder(folder) if !self.is_main => folder.join(path).display().to_string(),
            _ => path.to_owned(),
        }
    }

    /// Whether the files can be listed.
    pub(super) fn is_there(self) -> bool {
        match self.place {
            Place::Folder(folder) => std::fs::read_dir(folder).is_ok(),
            Place::Embedded(_) => true,
        }
    }

    /// Opens a file; `None` when there is none of that name.
    pub(super) fn open(self, path: &str) -> io::Result<Option<Blob>> {
        match self.place {
            Place::Embedded(files) => {
                let file = files.iter().find(|file| file.path == path);
                Ok(file.map(|file| Blob::embedded(path, file.bytes)))
            }
            Place::Folder(folder) => match File::open(folder.join(path)) {
                Ok(file) => Blob::on_disk(&self.shown(path), file).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether there is a file of that name.
    pub(super) fn contains(self, path: &str) -> bool {
        match self.place {
            Place::Embedded(files) => files.iter().any(|file| file.path == path),
            Place::Folder(folder) => folder.join(path).is_file(),
        }
    }

    /// Names of the files at the top, sorted.
    pub(super) fn top_level_files(self) -> Vec<String> {
        let mut names: Vec<String> = match self.place {
            Place::Embedded(files) => {
                files.iter().map(|file| file.path.to_owned()).filter(|path| !path.contains('/')).collect()
            }
            Place::Folder(folder) => std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
        };
        names.sort();
        names
    }

    /// A text file; `None` when there is none, or when it cannot be read, which is a problem.
    pub(super) fn text(self, path: &str, problems: &mut Vec<Problem>) -> Option<String> {
        let text = String::from_utf8(self.bytes(path, problems)?);
        let text = text.map_err(|error| format!("not UTF-8: {}", error.utf8_error()));
        text.map_err(|reason| problems.push(Problem::unreadable(self.shown(path), reason))).ok()
    }

    /// A small file; `None` when there is none, or when it cannot be read, which is a problem.
    pub(super) fn bytes(self, path: &str, problems: &mut Vec<Problem>) -> Option<Vec<u8>> {
        let blob = match self.open(path) {
            Ok(blob) => blob?,
            Err(error) => {
                problems.push(Problem::unreadable(self.shown(path), error));
                return None;
            }
        };
        if blob.bytes() > SMALL_BYTES_MAX {
            problems.push(Problem::unreadable(self.shown(path), format!("longer than {SMALL_BYTES_MAX} bytes")));
            return None;
        }
        blob.read_all().map_err(|reason| problems.push(Problem::unreadable(self.shown(path), reason))).ok()
    }
}
