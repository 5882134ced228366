//! Detects that files of a running worker were removed: it ends with an error, before it acknowledges data that is
//! lost.

use std::time::Duration;

use super::data_lock::DataLock;
use crate::store::Store;

/// Time between checks in a worker.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Returns with an error when the database or the lock file is no longer the file under its name.
pub(super) async fn files_removed(lock: &DataLock, store: &Store, interval: Duration) -> anyhow::Error {
    loop {
        tokio::time::sleep(interval).await;
        let looked = store.check_files().map_err(anyhow::Error::from).and_then(|()| lock.check());
        if let Err(error) = looked {
            return error.context("shutting down, because the data folder was changed; repair it and start again");
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_whose_files_are_removed_ends_with_an_error() {
        for name in ["fluxserve.db-wal", "fluxserve.lock"] {
            let folder = tempfile::tempdir().expect("a folder");
            let lock = DataLock::take(folder.path()).expect("free");
            let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
            let interval = Duration::from_millis(5);
            let quiet = tokio::time::timeout(10 * interval, files_removed(&lock, &store, interval)).await;
            assert!(quiet.is_err(), "nothing was removed");
            std::fs::rename(folder.path().join(name), folder.path().join("taken")).expect("moved");
            let told = tokio::time::timeout(Duration::from_secs(10), files_removed(&lock, &store, interval)).await;
            let told = format!("{:#}", told.expect("noticed"));
            assert!(told.contains(name) && told.contains("start again"), "{told}");
        }
    }
}
