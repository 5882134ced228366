//! Known checksums of downloaded files: from the names of the cache's blobs, or from the metadata files that Hugging Face's
//! own tools write into a folder of the user's choice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::HubError;
use super::checksum::Checksum;
use super::file_system::make_folder_of;

/// Where metadata files are inside a folder.
const NOTES: &str = ".cache/huggingface/download";
/// Levels of folders that are searched; a pipeline has one.
const DEPTH_MAX: usize = 3;
/// Maximum files that are looked at.
const FILES_MAX: usize = 20_000;

/// A file whose checksum is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    /// Path inside the folder, with `/`.
    pub path: String,
    /// What it should be.
    pub checksum: Checksum,
    /// The file that holds the content, and that is deleted if it is damaged.
    pub content: PathBuf,
}

/// Lists the files of a folder whose checksums are known, ordered by path. Empty for a folder that did not come from the hub.
pub fn known_files(folder: &Path) -> Vec<KnownFile> {
    let mut found = BTreeMap::new();
    look(folder, "", DEPTH_MAX, &mut found);
    let known = found.into_iter().filter_map(|(path, file)| {
        let linked = fs::read_link(&file).ok().and_then(|target| {
            let checksum = Checksum::of_name(target.file_name()?.to_str()?)?;
            (target.parent()?.file_name()? == "blobs").then_some(checksum)
        });
        let checksum = linked.or_else(|| noted(folder, &path))?;
        let content = fs::canonicalize(&file).unwrap_or(file);
        Some(KnownFile { path, checksum, content })
    });
    known.collect()
}

fn look(folder: &Path, prefix: &str, depth: usize, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, file) = (format!("{prefix}{name}"), entry.path());
        if file.is_dir() {
            if depth > 1 && !name.starts_with('.') {
                look(&file, &format!("{path}/"), depth - 1, found);
            }
        } else if found.len() < FILES_MAX {
            found.insert(path, file);
        }
    }
}

fn note_of(folder: &Path, path: &str) -> PathBuf {
    folder.join(NOTES).join(format!("{path}.metadata"))
}

/// Reads a file's checksum from its metadata: lines with the commit, the checksum and the time.
pub(super) fn noted(folder: &Path, path: &str) -> Option<Checksum> {
    let text = fs::read_to_string(note_of(folder, path)).ok()?;
    Checksum::of_name(text.lines().nth(1)?.trim())
}

/// Writes a file's metadata.
pub(super) fn note(folder: &Path, path: &str, commit: &str, checksum: &Checksum) -> Result<(), HubError> {
    let file = note_of(folder, path);
    make_folder_of(&file)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let text = format!("{commit}\n{}\n{now}\n", checksum.digits());
    fs::write(&file, text).map_err(|error| HubError::file(file, error))
}

/// Path of a file's incomplete content or lock during a download into a folder of the user's choice.
pub(super) fn beside(folder: &Path, path: &str, ending: &str) -> PathBuf {
    folder.join(NOTES).join(format!("{path}.{ending}"))
}
