//! Whether anything was written to the database meanwhile, by whichever process, asked without a query.
//!
//! In WAL mode every commit changes the header of the WAL index, the file `…-shm`. SQLite itself goes by it: a connection
//! whose copy of the header is still the one in the file knows that its cached pages are good (sqlite.org/walformat.html,
//! "The WAL-Index File Format", and `walTryBeginRead`). The file is mapped, as SQLite maps it: reading 96 bytes of memory
//! costs a hundredth of a microsecond, a call of the system a hundred times that, the shortest query ten times more again.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use memmap2::{MmapOptions, MmapRaw};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

/// 32-bit words in one copy of the header; two copies stand at the head of the file.
const HEADER_WORDS: usize = 12;

/// What the database stood at. Equal marks: nothing was committed in between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChangeMark([u32; HEADER_WORDS]);

/// Reads marks. Clones share it.
#[derive(Clone)]
pub(super) struct Changes {
    index: Arc<RwLock<Option<Index>>>,
    /// As long as any connection is open, the index stays the one file that all connections of all processes share: it
    /// is neither removed nor cut. The pool's come and go, so this one is ours.
    guard: Arc<Mutex<Option<SqliteConnection>>>,
}

/// The index, mapped where that could be done.
struct Index {
    map: Option<MmapRaw>,
    /// To close any descriptor of a file takes all the process's locks off it (`fcntl(2)`, "Record locking"), SQLite's
    /// among them: so this one is kept until the connections are closed.
    _file: File,
}

impl Changes {
    /// For the database at `path`, which is in WAL mode; no link leads there.
    ///
    /// # Errors
    /// When the database cannot be opened once more. An index that cannot be mapped, or that is not the one which commits
    /// change, is no error: then there are no marks.
    pub(super) async fn of(path: &Path, options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut guard = options.connect().await?;
        // The index is opened with the first transaction.
        sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut guard).await?;
        let mut name = path.as_os_str().to_owned();
        name.push("-shm");
        let mut index = Index::open(Path::new(&name))
            .inspect_err(|error| tracing::warn!(%error, "the WAL index cannot be read: every key is looked up anew"))
            .ok();
        if let Some(index) = &mut index
            && index.map.is_some()
            && !index.follows(&mut guard).await
        {
            tracing::warn!("commits do not show in the WAL index at `{}`: every key is looked up anew", path.display());
            index.map = None;
        }
        Ok(Self { index: Arc::new(RwLock::new(index)), guard: Arc::new(Mutex::new(Some(guard))) })
    }

    /// What the database stands at. `None` when it cannot be told: somebody is writing, or the database was closed.
    pub(super) fn mark(&self) -> Option<ChangeMark> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.mark()
    }

    /// Before the last connections are closed: from now on there are no marks.
    pub(super) async fn close(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guard) = guard
            && let Err(error) = guard.close().await
        {
            tracing::warn!(%error, "a connection to the database was not closed in good order");
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
        let map = map
            .inspect_err(|error| tracing::warn!(%error, "the WAL index cannot be mapped: every key is looked up anew"));
        Ok(Self { map: map.ok(), _file: file })
    }

    /// Whether a commit changes the mark: a file that only has the right name would tell for ever that nothing was.
    async fn follows(&self, connection: &mut SqliteConnection) -> bool {
        let before = self.mark();
        // A field of the file's header that SQLite leaves to the application: setting it is a whole write transaction
        // and touches no table.
        if let Err(error) = sqlx::query("PRAGMA user_version = 1").execute(connection).await {
            tracing::warn!(%error, "the database takes no writes");
            return false;
        }
        let after = self.mark();
        before.is_some() && after.is_some() && before != after
    }

    fn mark(&self) -> Option<ChangeMark> {
        let map = self.map.as_ref()?;
        // A writer fills the second copy, then the first (`walIndexWriteHdr`): read the other way round, two equal ones
        // are whole.
        let first = copy(map, 0);
        fence(Ordering::Acquire);
        let second = copy(map, 1);
        (first == second).then_some(ChangeMark(first))
    }
}

#[expect(unsafe_code, clippy::cast_ptr_alignment, reason = "what is mapped here is shared with other processes")]
fn copy(map: &MmapRaw, which: usize) -> [u32; HEADER_WORDS] {
    std::array::from_fn(|word| {
        // SAFETY: the map begins at a page, so its words are aligned; `which` is 0 or 1, so they lie within its
        // length. The file is longer than that as long as the guard's connection is open: SQLite maps 32 KiB of it
        // and would be lost itself if somebody cut it. What others write meanwhile is read as atomics are.
        let shared = unsafe { AtomicU32::from_ptr(map.as_mut_ptr().cast::<u32>().add(which * HEADER_WORDS + word)) };
        shared.load(Ordering::Relaxed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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
    async fn a_closed_database_has_no_mark_even_when_it_is_opened_again() {
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
    async fn a_database_behind_a_link_is_followed_whatever_lies_beside_the_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (real, link) = (folder.path().join("real.db"), folder.path().join("link.db"));
        let store = Store::open(&real).await.expect("opens");
        // An index that a killed process has left where the database was once.
        std::fs::copy(folder.path().join("real.db-shm"), folder.path().join("link.db-shm")).expect("copied");
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        let linked = Store::open(&link).await.expect("opens");
        let before = linked.change_mark();
        store.check_writable().await.expect("writes");
        assert!(before.is_some() && linked.change_mark().is_some() && linked.change_mark() != before);
        assert!(linked.change_mark() == store.change_mark());
    }

    #[tokio::test]
    async fn an_index_that_commits_do_not_change_gives_no_marks() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("test.db"), folder.path().join("other.db"));
        let store = Store::open(&path).await.expect("opens");
        // Whole, and of a database that nobody has open.
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
