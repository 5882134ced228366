//! The SQLite database: pool, pragmas, migrations, copies, and whether it can be written. Does not know what any table means;
//! each table belongs to the `store.rs` of one module.

mod backup;
mod changes;
mod files;
mod migration;
mod write_check;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use changes::ChangeMark;
use changes::Changes;
use files::OpenFiles;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqlitePool};

/// Connections of the pool. SQLite has one writer at a time, so more of them would only wait for each other.
const CONNECTIONS_MAX: u32 = 8;
/// How long a writer waits for another process's (say, the command line's) transaction.
const BUSY_TIMEOUT_SECONDS: u64 = 5;
/// How long a caller waits for a connection before it is told that the database is not available.
const ACQUIRE_TIMEOUT_SECONDS: u64 = 10;
/// What the log is cut down to when it begins anew: what it holds is readable long after the rows are gone.
const LOG_BYTES_KEPT_MAX: u32 = 4 * 1024 * 1024;

/// Why the database did not do as asked. The cause is the error's source, not part of its text.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or its folder cannot be made.
    #[error("cannot create `{}`", path.display())]
    Create {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no database here, and the caller did not want a new one.
    #[error("there is no database at `{}`: check the data directory", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is there and cannot be used.
    #[error("cannot open the database `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// There is a file, with nothing in it.
    #[error("`{}` has none of this program's tables: restore a backup, or let `fluxserve serve` begin anew there", path.display())]
    Blank {
        /// The file.
        path: PathBuf,
    },
    /// A newer program has written it, or one that was built from other sources.
    #[error("the database `{}` is of another version: use the program that wrote it, or restore a backup", path.display())]
    OtherProgram {
        /// The file.
        path: PathBuf,
        /// What is different.
        source: MigrateError,
    },
    /// The disk, or what this user may take of it, is full.
    #[error("there is no room for the database `{}`: make room on the disk", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is no database, or no longer a whole one.
    #[error("the database `{}` is damaged: restore a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process does not let go of it.
    #[error("another process holds the database `{}`: try again when it is done", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The tables could not be changed, and none of the other reasons is why.
    #[error("cannot bring the database `{}` up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: MigrateError,
    },
    /// The copy was not made.
    #[error("cannot copy the database to `{}`", path.display())]
    Backup {
        /// Where to.
        path: PathBuf,
        /// What SQLite or the system says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the open database is not the one under its name any more.
    #[error("`{}` was removed or replaced while the database was open: what is written now would be lost", path.display())]
    TakenAway {
        /// The file.
        path: PathBuf,
    },
    /// What one connection has written, another does not find.
    #[error("what is written to the database is not there for others")]
    NotSeen,
    /// A query failed: busy, full, or broken. Trying again may help.
    #[error("the database failed")]
    Query(#[from] sqlx::Error),
}

/// The database. Clones share one pool.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    /// `None`: in memory.
    changes: Option<Changes>,
    files: OpenFiles,
}

impl Store {
    /// Opens the database at `path`, making folder and file (readable by this user alone) where they are missing, and
    /// brings its tables up to date.
    ///
    /// # Errors
    /// Every variant but [`StoreError::Missing`], [`StoreError::Blank`] and [`StoreError::Query`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let was_there = path.exists();
        create_file(path)?;
        Self::connect(path, |path| {
            if was_there {
                tracing::warn!("`{}` was there with nothing in it: a new database is begun", path.display());
            }
            Ok(())
        })
        .await
    }

    /// Like [`Store::open`], for callers to whom a new, empty database would be of no use.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such file, [`StoreError::Blank`] when nothing is in it; else as
    /// [`Store::open`].
    pub async fn open_existing(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        Self::connect(path, |path| Err(StoreError::Blank { path: path.to_owned() })).await
    }

    /// A database that lives as long as the value: for tests.
    ///
    /// # Errors
    /// [`StoreError::Open`] or [`StoreError::Migrate`].
    pub async fn open_in_memory() -> Result<Self, StoreError> {
        let path = Path::new(":memory:");
        // Each connection to `:memory:` is a database of its own, so there is exactly one and it never ends. There is no
        // disk that a COMMIT could fail at either, so nothing is asked of it when it comes back.
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

    /// `if_blank` is asked where there are no tables yet.
    async fn connect(path: &Path, if_blank: impl Fn(&Path) -> Result<(), StoreError>) -> Result<Self, StoreError> {
        let failed = |source: sqlx::Error| match migration::Cause::of(&source) {
            Some(cause) => cause.told_of(path.to_owned(), Box::new(source)),
            None => StoreError::Open { path: path.to_owned(), source },
        };
        // SQLite follows links, and puts what belongs to a database beside the file itself; so does everything here.
        let real = path.canonicalize().map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(&real)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered with success must survive a power cut too; commits are rare next to the work they buy.
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is written over: prompts and start images are not to be read in the file afterwards.
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

    /// What the database stands at. Two equal marks: nothing was committed between them, by any process. `None`: that
    /// cannot be told, and whoever asks has to assume a change.
    pub fn change_mark(&self) -> Option<ChangeMark> {
        self.changes.as_ref()?.mark()
    }

    /// The connections, for the `store.rs` of other modules.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Writes to the database, to see that it can be done: not locked, not read-only, the disk not full, and what is
    /// written is there for others.
    ///
    /// # Errors
    /// [`StoreError::Query`] when it cannot, [`StoreError::NotSeen`] when others do not find it.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        write_check::check(&self.pool).await
    }

    /// Looks whether the open files are still those under their names.
    ///
    /// # Errors
    /// [`StoreError::TakenAway`] for the first that is not.
    pub fn check_files(&self) -> Result<(), StoreError> {
        self.files.check()
    }

    /// Folds the write-ahead log into the file and empties it, so that what was deleted is gone from both. `false`: not
    /// now, because somebody is reading; the log is as it was, or shorter.
    ///
    /// # Errors
    /// [`StoreError::Query`] when the database cannot be written.
    pub async fn truncate_log(&self) -> Result<bool, StoreError> {
        let (is_busy, _, _): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&self.pool).await?;
        Ok(is_busy == 0)
    }

    /// Copies the database, as it stands at one moment, into a file that is not there yet and that this user alone can
    /// read; returns its size in bytes. Others can go on reading and writing meanwhile. The file gets its name when it is
    /// whole; until then it is `….part`.
    ///
    /// # Errors
    /// [`StoreError::Create`] when the file is there or cannot be made, [`StoreError::Backup`] when it cannot be filled.
    pub async fn backup(&self, path: &Path) -> Result<u64, StoreError> {
        backup::write(&self.pool, path).await
    }

    /// Closes all connections; the write-ahead log is folded into the file. Queries fail afterwards.
    pub async fn close(&self) {
        self.pool.close().await;
        if let Some(changes) = &self.changes {
            changes.close().await;
        }
    }
}

/// A pool for a database in a file.
fn pool_options(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(Duration::from_secs(ACQUIRE_TIMEOUT_SECONDS))
        // Where a COMMIT fails (the disk is full, say), SQLite has rolled back by itself, and sqlx's own count of open
        // transactions stays one too high: what that connection "commits" from then on is the end of an inner savepoint,
        // which reaches no file and keeps every other writer out. Such a connection is closed, which undoes all that it
        // still held, and never used again.
        .after_release(|connection, _| {
            Box::pin(async move {
                // Comes after the rollback that a dropped transaction has queued.
                connection.ping().await?;
                let is_sound = !connection.is_in_transaction();
                if !is_sound {
                    tracing::warn!("a transaction could not be ended: its connection to the database is given up");
                }
                Ok(is_sound)
            })
        })
}

/// Makes the file before SQLite does, because SQLite would take the process's umask; the files it later puts beside it
/// get the same rights as this one.
fn create_file(path: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, source| StoreError::Create { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder).map_err(|source| failed(folder, source))?;
    }
    create_private(OpenOptions::new().write(true).create(true).truncate(false), path)
        .map_err(|source| failed(path, source))?;
    Ok(())
}

/// Opens a file that, where it is made, this user alone can read.
fn create_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests;
