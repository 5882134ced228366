//! The SQLite database: pool, pragmas, migrations, copies, and checks. Does not know what any table means; each table belongs
//! to the `store.rs` of one module.

mod backup;
mod changes;
mod error;
mod files;
mod migration;
mod milliseconds;
pub mod private_file;
pub mod secret_file;
mod write_check;

use std::path::Path;
use std::time::Duration;

pub use changes::ChangeMark;
use changes::Changes;
pub use error::StoreError;
use files::OpenFiles;
pub use milliseconds::{from_milliseconds, to_milliseconds};
use private_file::create_file;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, SqlitePool};

/// Connections of the pool. SQLite has one writer at a time, so more of them would only wait for each other.
const CONNECTIONS_MAX: u32 = 8;
/// Longest wait of a writer for a transaction of another process, such as the command line.
const BUSY_TIMEOUT_SECONDS: u64 = 5;
/// Longest wait for a reader before the log is left as it is: nobody can write meanwhile.
const TRUNCATION_WAIT_MILLISECONDS: u64 = 50;
/// Longest wait for a connection, after which the database counts as unavailable.
const ACQUIRE_TIMEOUT_SECONDS: u64 = 10;
/// Size that the write-ahead log is truncated to on a restart: it holds deleted rows in readable form.
const LOG_BYTES_KEPT_MAX: u32 = 4 * 1024 * 1024;

/// The database. Clones share one pool.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    /// `None` for a database in memory.
    changes: Option<Changes>,
    files: OpenFiles,
}

impl Store {
    /// Opens the database at `path` and migrates its tables. Creates a missing folder or file, readable by this user alone.
    ///
    /// # Errors
    /// Every variant but [`StoreError::Missing`], [`StoreError::Blank`] and [`StoreError::Query`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let was_there = path.exists();
        create_file(path)?;
        Self::connect(path, |path| {
            if was_there {
                tracing::warn!("`{}` exists and is empty: creating a new database in it", path.display());
            }
            Ok(())
        })
        .await
    }

    /// Like [`Store::open`], for callers that have no use for a new, empty database.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such file, [`StoreError::Blank`] when it is empty; otherwise as
    /// [`Store::open`].
    pub async fn open_existing(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        Self::connect(path, |path| Err(StoreError::Blank { path: path.to_owned() })).await
    }

    /// A database in memory, for tests.
    ///
    /// # Errors
    /// [`StoreError::Open`] or [`StoreError::Migrate`].
    pub async fn open_in_memory() -> Result<Self, StoreError> {
        let path = Path::new(":memory:");
        // Each connection to `:memory:` is a database of its own, so there is exactly one, which never ends. It needs no
        // check on release: without a disk, no COMMIT fails.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(SqliteConnectOptions::new().in_memory(true).foreign_keys(true))
            .await
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        migration::run(&pool, path).await?;
        Ok(Self { pool, changes: None, files: OpenFiles::default() })
    }

    /// Calls `if_blank` if there are no tables yet.
    async fn connect(path: &Path, if_blank: impl Fn(&Path) -> Result<(), StoreError>) -> Result<Self, StoreError> {
        let failed = |source: sqlx::Error| match migration::Cause::of(&source) {
            Some(cause) => cause.into_error(path.to_owned(), Box::new(source)),
            None => StoreError::Open { path: path.to_owned(), source },
        };
        // SQLite resolves links, and puts its files beside the resolved one; so does everything here.
        let real = path.canonicalize().map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(&real)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write must survive a power cut too; commits are rare compared to the work they record.
            .synchronous(SqliteSynchronous::Full)
            // Overwrites deleted data: prompts and input images must not stay readable in the file.
            .pragma("secure_delete", "ON")
            .pragma("journal_size_limit", LOG_BYTES_KEPT_MAX.to_string())
            .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_SECONDS));
        let _lock = migration::MigrationLock::take(&real).await?;
        let pool = pool_options(CONNECTIONS_MAX).connect_with(options.clone()).await.map_err(failed)?;
        if migration::is_blank(&pool).await.map_err(failed)? {
            if_blank(path)?;
        }
        migration::run(&pool, path).await?;
        let changes = Changes::of(&real, &options).await.map_err(failed)?;
        Ok(Self { pool, changes: Some(changes), files: OpenFiles::of(&real) })
    }

    /// Mark of the current state. Between two equal marks, no process committed anything. `None` if unknown: the caller has to
    /// assume a change.
    pub fn change_mark(&self) -> Option<ChangeMark> {
        self.changes.as_ref()?.mark()
    }

    /// The connections, for the `store.rs` of other modules.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Checks that the database takes writes: not locked, not read-only, the disk not full, and a write is visible to other
    /// connections.
    ///
    /// # Errors
    /// [`StoreError::Query`] when a write fails, [`StoreError::NotSeen`] when other connections do not see it.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        write_check::check(&self.pool).await
    }

    /// Checks that the open files are still those under their names.
    ///
    /// # Errors
    /// [`StoreError::TakenAway`] for the first that is not.
    pub fn check_files(&self) -> Result<(), StoreError> {
        self.files.check()
    }

    /// Folds the write-ahead log into the file and empties it, so that both lose deleted data. Returns `false` if a reader, such
    /// as a backup, prevents that now; the log is as it was, or shorter.
    ///
    /// # Errors
    /// [`StoreError::Query`] when the database cannot be written.
    pub async fn truncate_log(&self) -> Result<bool, StoreError> {
        let mut connection = self.pool.acquire().await?;
        // SQLite keeps out all writers while it waits for readers.
        wait_at_most(&mut connection, TRUNCATION_WAIT_MILLISECONDS).await?;
        let folded: Result<(i64, i64, i64), _> =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection).await;
        wait_at_most(&mut connection, BUSY_TIMEOUT_SECONDS * 1000).await?;
        let (is_busy, _, _) = folded?;
        Ok(is_busy == 0)
    }

    /// Copies a snapshot of the database into a new file, readable by this user alone, and returns its size in bytes. Does not
    /// block readers and writers. The file is `….part` until it is complete.
    ///
    /// # Errors
    /// [`StoreError::Create`] when the file exists or cannot be created, [`StoreError::Backup`] when it cannot be filled.
    pub async fn backup(&self, path: &Path) -> Result<u64, StoreError> {
        backup::write(&self.pool, path).await
    }

    /// Closes all connections and folds the write-ahead log into the file. Later queries fail.
    pub async fn close(&self) {
        self.pool.close().await;
        if let Some(changes) = &self.changes {
            changes.close().await;
        }
    }
}

/// Sets how long a connection waits for others.
async fn wait_at_most(connection: &mut SqliteConnection, milliseconds: u64) -> Result<(), StoreError> {
    sqlx::query(AssertSqlSafe(format!("PRAGMA busy_timeout = {milliseconds}"))).execute(connection).await?;
    Ok(())
}

/// A pool for a database in a file.
fn pool_options(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(Duration::from_secs(ACQUIRE_TIMEOUT_SECONDS))
        // When a COMMIT fails (say, on a full disk), SQLite rolls back by itself, but sqlx's count of open transactions stays
        // one too high: later "commits" of that connection only end an inner savepoint, which reaches no file and blocks
        // every other writer. Such a connection is closed, which undoes what it held.
        .after_release(|connection, _| {
            Box::pin(async move {
                // Runs after the rollback that a dropped transaction has queued.
                connection.ping().await?;
                let is_sound = !connection.is_in_transaction();
                if !is_sound {
                    tracing::warn!("cannot end a transaction: closing its connection to the database");
                }
                Ok(is_sound)
            })
        })
}

#[cfg(test)]
mod tests;
