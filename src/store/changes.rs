//! Detection of commits by any process, without a query.
//!
//! In WAL mode every commit changes the header of the WAL index, the file `…-shm`. SQLite itself relies on it: a connection
//! whose copy of the header equals the file's knows that its cached pages are valid (sqlite.org/walformat.html,
//! "The WAL-Index File Format", and `walTryBeginRead`). The file is mapped, as SQLite maps it: reading 96 bytes of memory
//! takes 10 ns, a system call a hundred times that, the shortest query ten times more again.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use memmap2::{MmapOptions, MmapRaw};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

/// 32-bit words in one copy of the header; the file begins with two copies.
const HEADER_WORDS: usize = 12;

/// State of the database. Between equal marks, nothing was committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChangeMark([u32; HEADER_WORDS]);

/// Reads marks. Clones share it.
#[derive(Clone)]
pub(super) struct Changes {
    index: Arc<RwLock<Option<Index>>>,
    /// As long as any connection is open, the index stays the file that all connections of all processes share: it is neither
    /// removed nor truncated. The pool's connections come and go, so this one is kept.
    guard: Arc<Mutex<Option<SqliteConnection>>>,
}

/// The index, mapped if possible.
struct Index {
    map: Option<MmapRaw>,
    /// Closing any descriptor of a file releases all the process's locks on it (`fcntl(2)`, "Record locking"), including
    /// SQLite's: so this one is kept until the connections are closed.
    _file: File,
}

impl Changes {
    /// For the database at `path`, which is in WAL mode and no link.
    ///
    /// # Errors
    /// When the database cannot be opened again. Without an index that can be mapped and that commits change, there are no
    /// marks, which is no error.
    pub(super) async fn of(path: &Path, options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut guard = options.connect().await?;
        // The index is opened with the first transaction.
        sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut guard).await?;
        let mut name = path.as_os_str().to_owned();
        name.push("-shm");
        let mut index = Index::open(Path::new(&name))
            .inspect_err(|error| tracing::warn!(%error, "cannot read the WAL index: every request looks its key up"))
            .ok();
        if let Some(index) = &mut index
            && index.map.is_some()
            && !index.follows(&mut guard).await
        {
            tracing::warn!(
                "commits do not change the WAL index at `{}`: every request looks its key up",
                path.display()
            );
            index.map = None;
        }
        Ok(Self { index: Arc::new(RwLock::new(index)), guard: Arc::new(Mutex::new(Some(guard))) })
    }

    /// Mark of the current state. `None` during a write, or when the database was closed.
    pub(super) fn mark(&self) -> Option<ChangeMark> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.mark()
    }

    /// Ends the marks, before the last connections are closed.
    pub(super) async fn close(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guard) = guard
            && let Err(error) = guard.close().await
        {
            tracing::warn!(%error, "cannot close a connection to the database");
        }
        self.index.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Index {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let map = MmapOptions::new().len(2 * HEADER_WORDS * size_of::<u32>()).map_raw_read_only(&file);
        let map =
            map.inspect_err(|error| tracing::warn!(%error, "cannot map the WAL index: every request looks its key up"));
        Ok(Self { map: map.ok(), _file: file })
    }

    /// Whether a commit changes the mark: with another file under the right name it never would.
    async fn follows(&self, connection: &mut SqliteConnection) -> bool {
        let before = self.mark();
        // A field of the file's header that SQLite leaves to the application: setting it is a complete write transaction and
        // touches no table.
        if let Err(error) = sqlx::query("PRAGMA user_version = 1").execute(connection).await {
            tracing::warn!(%error, "the database takes no writes");
            return false;
        }
        let after = self.mark();
        before.is_some() && after.is_some() && before != after
    }

    fn mark(&self) -> Option<ChangeMark> {
        let map = self.map.as_ref()?;
        // A writer fills the second copy, then the first (`walIndexWriteHdr`): read in reverse order, two equal copies are
        // complete.
        let first = copy(map, 0);
        fence(Ordering::Acquire);
        let second = copy(map, 1);
        (first == second).then_some(ChangeMark(first))
    }
}

#[expect(unsafe_code, clippy::cast_ptr_alignment, reason = "the mapped memory is shared with other processes")]
fn copy(map: &MmapRaw, which: usize) -> [u32; HEADER_WORDS] {
    std::array::from_fn(|word| {
        // SAFETY: the map begins at a page, so its words are aligned; `which` is 0 or 1, so they lie within its
        // length. The file is longer than that as long as the guard's connection is open: SQLite maps 32 KiB of it
        // and would fail itself if it were truncated. Concurrent writes by others are read atomically.
        let shared = unsafe { AtomicU32::from_ptr(map.as_mut_ptr().cast::<u32>().add(which * HEADER_WORDS + word)) };
        shared.load(Ordering::Relaxed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn every_commit_of_any_connection_changes_the_mark() {
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
            assert!(mark.is_some() && !seen.contains(&mark), "no mark recurs");
            seen.push(mark);
        }
        // Folds the writes into the file and restarts the log.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_all(other.pool()).await.expect("folds");
        other.check_writable().await.expect("writes");
        assert!(!seen.contains(&store.change_mark()));
        other.close().await;
        assert!(store.change_mark().is_some(), "the index exists while any connection is open");
    }

    #[tokio::test]
    async fn a_closed_database_has_no_mark_even_when_it_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("test.db");
        let store = Store::open(&path).await.expect("opens");
        store.check_writable().await.expect("writes");
        assert!(store.change_mark().is_some());
        // The index goes with the last connection, and is recreated with the next.
        store.close().await;
        assert!(store.change_mark().is_none(), "the removed one does not count");
        let again = Store::open(&path).await.expect("opens");
        again.check_writable().await.expect("writes");
        assert!(again.change_mark().is_some() && store.change_mark().is_none());
    }

    #[tokio::test]
    async fn the_index_outlives_every_connection_of_the_pool() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("test.db");
        let store = Store::open(&path).await.expect("opens");
        store.pool().close().await;
        let before = store.change_mark();
        let other = Store::open(&path).await.expect("opens");
        other.check_writable().await.expect("writes");
        assert!(before.is_some() && store.change_mark().is_some() && store.change_mark() != before);
        assert!(store.change_mark() == other.change_mark());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_database_behind_a_link_ignores_files_beside_the_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (real, link) = (folder.path().join("real.db"), folder.path().join("link.db"));
        let store = Store::open(&real).await.expect("opens");
        // An index that a killed process left where the database used to be.
        std::fs::copy(folder.path().join("real.db-shm"), folder.path().join("link.db-shm")).expect("copied");
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        let linked = Store::open(&link).await.expect("opens");
        let before = linked.change_mark();
        store.check_writable().await.expect("writes");
        assert!(before.is_some() && linked.change_mark().is_some() && linked.change_mark() != before);
        assert!(linked.change_mark() == store.change_mark());
    }

    #[tokio::test]
    async fn an_index_that_commits_do_not_change_yields_no_marks() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("test.db"), folder.path().join("other.db"));
        let store = Store::open(&path).await.expect("opens");
        // Complete, and of a database that is not open.
        std::fs::copy(folder.path().join("test.db-shm"), folder.path().join("other.db-shm")).expect("copied");
        let options = SqliteConnectOptions::new().filename(&path);
        let wrong = Changes::of(&other, &options).await.expect("opens");
        assert!(wrong.mark().is_none());
        assert!(Changes::of(&path, &options).await.expect("opens").mark().is_some());
        assert!(store.change_mark().is_some());
    }

    #[tokio::test]
    async fn an_index_that_cannot_be_mapped_keeps_its_descriptor() {
        let folder = tempfile::tempdir().expect("a folder");
        // A folder can be opened, and never mapped.
        let index = Index::open(folder.path()).expect("opened");
        assert!(index.map.is_none() && index.mark().is_none());
    }

    #[tokio::test]
    async fn without_a_log_there_is_no_mark() {
        let store = Store::open_in_memory().await.expect("opens");
        assert!(store.change_mark().is_none());
    }
}
