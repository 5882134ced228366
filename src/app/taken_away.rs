//! Files that are taken from under a running worker: it ends with a word, before it acknowledges what nobody will find.

use std::time::Duration;

use super::data_lock::DataLock;
use crate::store::Store;

/// How often is looked, in a worker.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// Returns, with what to say of it, when the database or the folder's lock is not the file under its name any more.
pub(super) async fn files_taken_away(lock: &DataLock, store: &Store, interval: Duration) -> anyhow::Error {
    loop {
        tokio::time::sleep(interval).await;
        let looked = store.check_files().map_err(anyhow::Error::from).and_then(|()| lock.check());
        if let Err(error) = looked {
            return error
                .context("ending, because the data folder was changed by others; start again when it is in order");
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_whose_files_are_taken_away_ends_with_a_word() {
        for name in ["fluxserve.db-wal", "fluxserve.lock"] {
            let folder = tempfile::tempdir().expect("a folder");
            let lock = DataLock::take(folder.path()).expect("free");
            let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
            let interval = Duration::from_millis(5);
            let quiet = tokio::time::timeout(10 * interval, files_taken_away(&lock, &store, interval)).await;
            assert!(quiet.is_err(), "nothing was taken");
            std::fs::rename(folder.path().join(name), folder.path().join("taken")).expect("moved");
            let told = tokio::time::timeout(Duration::from_secs(10), files_taken_away(&lock, &store, interval)).await;
            let told = format!("{:#}", told.expect("noticed"));
            assert!(told.contains(name) && told.contains("start again"), "{told}");
        }
    }
}
