//! One worker per data folder: a second one would run the first one's jobs and delete its images.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::store::private_file::{create_private_folder, open_private};

const FILE_NAME: &str = "fluxserve.lock";

/// A lock held until the value is dropped; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct DataLock {
    file: File,
    path: PathBuf,
}

impl DataLock {
    /// Locks the folder, creating it (for this user only) if it is missing.
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        create_private_folder(directory)
            .with_context(|| format!("making the data folder `{}`", directory.display()))?;
        let path = directory.join(FILE_NAME);
        let file = open_private(OpenOptions::new().write(true).create(true).truncate(false), &path)
            .with_context(|| format!("opening `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => bail!(
                "another fluxserve uses the data folder `{}`: stop it first, or choose another folder with --data-dir",
                directory.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| {
                format!("locking `{}`: choose a folder on a file system with locks with --data-dir", path.display())
            }),
        }
    }

    /// Fails when the lock file is no longer the one under its name: then another worker can take the folder.
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
    fn a_folder_is_locked_by_one_worker_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let first = DataLock::take(&data).expect("free");
        let refusal = DataLock::take(&data).expect_err("taken").to_string();
        assert!(refusal.contains(&data.display().to_string()) && refusal.contains("--data-dir"), "{refusal}");
        drop(first);
        DataLock::take(&data).expect("free again");
    }
}
