//! Whether anything was written to the database meanwhile, by whichever process, asked without a query.
//!
//! In WAL mode every commit changes the header of the WAL index, the file `…-shm`. SQLite itself goes by it: a connection
//! whose copy of the header is still the one in the file knows that its cached pages are good (sqlite.org/walformat.html,
//! "The WAL-Index File Format", and `walTryBeginRead`). Reading 96 bytes costs about a microsecond; the shortest query, on
//! another thread, costs many times that.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// One copy of the header; two of them stand at the head of the file.
const HEADER_BYTES: usize = 48;

/// What the database stood at. Equal marks: nothing was committed in between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChangeMark {
    header: [u8; HEADER_BYTES],
    /// A file that was made anew begins to count anew.
    file: u64,
}

/// Reads marks. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    index: PathBuf,
    open: Arc<RwLock<Option<Opened>>>,
}

/// The index, and the number the system has for it.
#[derive(Debug)]
struct Opened {
    file: File,
    number: u64,
}

impl Changes {
    /// For the database at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let mut index = path.as_os_str().to_owned();
        index.push("-shm");
        Self { index: index.into(), open: Arc::default() }
    }

    /// What the database stands at. `None` when it cannot be told: there is no such file, or somebody is writing to it.
    pub(super) fn mark(&self) -> Option<ChangeMark> {
        if let Some(opened) = &*self.open.read().unwrap_or_else(PoisonError::into_inner)
            && number_of(&opened.file).ok()? == Some(opened.number)
        {
            return opened.mark();
        }
        let file = File::open(&self.index).ok()?;
        let number = number_of(&file).ok()??;
        let opened = Opened { file, number };
        let mark = opened.mark();
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        mark
    }
}

impl Opened {
    fn mark(&self) -> Option<ChangeMark> {
        let mut copies = [0; 2 * HEADER_BYTES];
        read_at_start(&self.file, &mut copies).ok()?;
        let (first, second) = copies.split_at(HEADER_BYTES);
        let is_whole = first == second;
        let header = <[u8; HEADER_BYTES]>::try_from(first).ok().filter(|_| is_whole)?;
        Some(ChangeMark { header, file: self.number })
    }
}

#[cfg(unix)]
fn read_at_start(file: &File, into: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, 0)
}

/// The number of a file that is still there; `None` for one that was removed while it was open.
#[cfg(unix)]
fn number_of(file: &File) -> io::Result<Option<u64>> {
    use std::os::unix::fs::MetadataExt as _;

    let metadata = file.metadata()?;
    Ok((metadata.nlink() > 0).then(|| metadata.ino()))
}

#[cfg(not(unix))]
fn read_at_start(_: &File, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(unix))]
fn number_of(_: &File) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use crate::store::Store;

    #[tokio::test]
    async fn every_commit_changes_the_mark_whichever_connection_made_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("test.db");
        let store = Store::open(&path).await.expect("opens");
        store.check_writable().await.expect("writes");
        let first = store.change_mark().expect("a mark");
        sqlx::query("SELECT count(*) FROM api_keys").fetch_one(store.pool()).await.expect("reads");
        assert!(store.change_mark() == Some(first), "reading changes nothing");
        store.check_writable().await.expect("writes");
        let second = store.change_mark();
        assert!(second.is_some() && second != Some(first));
        let other = Store::open(&path).await.expect("as another process would");
        let mut seen = vec![store.change_mark()];
        for _ in 0..50 {
            other.check_writable().await.expect("writes");
            let mark = store.change_mark();
            assert!(mark.is_some() && !seen.contains(&mark), "a mark comes but once");
            seen.push(mark);
        }
        // What was written is folded into the file, and the log begins anew.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_all(other.pool()).await.expect("folds");
        other.check_writable().await.expect("writes");
        assert!(!seen.contains(&store.change_mark()));
        other.close().await;
        assert!(store.change_mark().is_some(), "there as long as somebody has the database open");
    }

    #[tokio::test]
    async fn an_index_that_was_made_anew_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("test.db");
        let store = Store::open(&path).await.expect("opens");
        store.check_writable().await.expect("writes");
        assert!(store.change_mark().is_some());
        // With the last connection the index goes, and comes again with the next.
        store.close().await;
        assert!(store.change_mark().is_none(), "the removed one does not count");
        let again = Store::open(&path).await.expect("opens");
        again.check_writable().await.expect("writes");
        assert!(store.change_mark().is_some() && store.change_mark() == again.change_mark());
    }

    #[tokio::test]
    async fn without_a_log_there_is_no_mark() {
        let store = Store::open_in_memory().await.expect("opens");
        assert!(store.change_mark().is_none());
    }
}
