//! A file that gets its name when it is complete, even after a crash of the machine.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// An incomplete file, `PATH.part`, removed when dropped.
#[derive(Debug)]
pub(super) struct PartFile {
    pub(super) file: File,
    part: PathBuf,
    path: PathBuf,
    has_name: bool,
}

impl PartFile {
    /// Creates the file. The leftover of a killed process is replaced.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        if is_locked(&part) {
            bail!("another process is writing `{}`: wait for it, or name another file", part.display());
        }
        let context = || format!("making `{}`", part.display());
        if fs::symlink_metadata(&part).is_ok() {
            fs::remove_file(&part).with_context(context)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&part).with_context(context)?;
        // A file system without locks does not detect two processes that write the same file.
        drop(file.try_lock());
        Ok(Self { file, part, path: path.to_owned(), has_name: false })
    }

    /// Gives the file its name, once it is on the disk.
    pub(super) fn finish(mut self, replaces: bool) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| format!("writing `{}`", self.part.display()))?;
        // It may have been created in the meantime.
        if !replaces {
            refuse_existing(&self.path)?;
        }
        fs::rename(&self.part, &self.path).with_context(|| format!("making `{}`", self.path.display()))?;
        self.has_name = true;
        // The folder stores the name.
        File::open(folder_of(&self.path))
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("writing the folder of `{}`", self.path.display()))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.has_name {
            // If it stays, the next file of that name replaces it.
            drop(fs::remove_file(&self.part));
        }
    }
}

/// Refuses to replace a file.
pub(super) fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        bail!("`{}` exists: name another file, or replace it with `--force`", path.display());
    }
    Ok(())
}

/// The folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether another process is writing a file.
fn is_locked(part: &Path) -> bool {
    let is_file = fs::symlink_metadata(part).is_ok_and(|metadata| metadata.is_file());
    is_file && File::open(part).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, part) = (folder.path().join("a.gguf"), folder.path().join("a.gguf.part"));
        fs::write(&part, "a leftover").expect("written");
        let mut made = PartFile::create(&path).expect("created");
        made.file.write_all(b"complete").expect("written");
        assert!(!path.exists());
        let refused = PartFile::create(&path).expect_err("one is being written").to_string();
        assert!(refused.starts_with("another process is writing"), "{refused}");
        made.finish(false).expect("named");
        assert_eq!(fs::read(&path).expect("readable"), b"complete");
        assert!(!part.exists());
        drop(PartFile::create(&path).expect("created"));
        assert!(path.exists() && !part.exists(), "what was given up leaves nothing");
    }

    #[test]
    fn a_file_that_exists_is_replaced_on_request_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.gguf");
        let made = PartFile::create(&path).expect("created");
        fs::write(&path, "of another process").expect("written");
        let refused = made.finish(false).expect_err("it exists").to_string();
        assert!(refused.contains("exists") && refused.contains("`--force`"), "{refused}");
        assert_eq!(fs::read(&path).expect("readable"), b"of another process");
        PartFile::create(&path).expect("created").finish(true).expect("replaced");
        assert_eq!(fs::read(&path).expect("readable"), b"");
    }
}
