//! The files of an open database, and whether they are still the ones under their names. SQLite keeps using files that were
//! removed or replaced: no other process sees what it writes then, and it is lost when the process ends.

use std::path::{Path, PathBuf};

use super::error::StoreError;

/// Identity of a file, whatever its name: device and inode.
type Identity = (u64, u64);

/// The files when the database was opened. Empty for a database in memory, or where files have no identity.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenFiles(Vec<(PathBuf, Option<Identity>)>);

impl OpenFiles {
    /// The files of the database at `path`, which is open, in WAL mode, and no link.
    pub(super) fn of(path: &Path) -> Self {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            let name = PathBuf::from(name);
            let identity = identity(&name);
            (name, identity)
        };
        Self(["", "-wal", "-shm"].map(beside).into())
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        for (path, opened) in &self.0 {
            if identity(path) != *opened {
                return Err(StoreError::TakenAway { path: path.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// On such systems an open file cannot be removed.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use crate::store::{Store, StoreError};

    #[tokio::test]
    async fn removed_or_replaced_files_of_an_open_database_are_detected() {
        for ending in ["", "-wal", "-shm"] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("fluxserve.db");
            let store = Store::open(&path).await.expect("opens");
            store.check_writable().await.expect("writes");
            store.truncate_log().await.expect("folds");
            store.check_files().expect("all there");
            let victim = folder.path().join(format!("fluxserve.db{ending}"));
            let (taken, copy) = (folder.path().join("taken"), folder.path().join("copy"));
            std::fs::copy(&victim, &copy).expect("copied");
            std::fs::rename(&victim, &taken).expect("moved");
            let error = store.check_files().expect_err("gone");
            assert!(
                matches!(&error, StoreError::TakenAway { path } if path.ends_with(victim.file_name().expect("a name")))
            );
            std::fs::rename(&copy, &victim).expect("moved");
            store.check_files().expect_err("another file under the name");
            std::fs::rename(&taken, &victim).expect("moved");
            store.check_files().expect("all there again");
            store.close().await;
        }
        Store::open_in_memory().await.expect("opens").check_files().expect("has none");
    }
}
