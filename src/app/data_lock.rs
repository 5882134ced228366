//! One worker for one data folder: a second one would take up the jobs of the first and sweep its images away.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

const FILE_NAME: &str = "fluxserve.lock";

/// Held as long as the value lives; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct DataLock {
    file: File,
    path: PathBuf,
}

impl DataLock {
    /// Takes the folder, making it (for this user alone) where it is missing.
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        let mut folder = DirBuilder::new();
        folder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.create(directory).with_context(|| format!("making the data folder `{}`", directory.display()))?;
        let path = directory.join(FILE_NAME);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).with_context(|| format!("opening `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => bail!(
                "another fluxserve serves from the data folder `{}`: stop it first, or give this one a folder of its \
                 own with --data-dir",
                directory.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| {
                format!("locking `{}`: choose a folder on a file system with locks with --data-dir", path.display())
            }),
        }
    }

    /// Refuses when the lock's file is not the one under its name any more: then another worker can take the folder.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let held = self.file.metadata().context("looking at the data folder's lock")?;
            let named = std::fs::metadata(&self.path).ok();
            if named.is_none_or(|named| (named.dev(), named.ino()) != (held.dev(), held.ino())) {
                bail!("`{}` was removed or replaced: another worker could take the data folder", self.path.display());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_by_one_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let first = DataLock::take(&data).expect("free");
        let refusal = DataLock::take(&data).expect_err("taken").to_string();
        assert!(refusal.contains(&data.display().to_string()) && refusal.contains("--data-dir"), "{refusal}");
        drop(first);
        DataLock::take(&data).expect("free again");
    }
}
