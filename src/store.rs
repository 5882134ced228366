//! The SQLite database: pool, pragmas, migrations, and whether it can be written. Does not know what any table means;
//! each table belongs to the `store.rs` of one module.

mod changes;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use changes::ChangeMark;
use changes::Changes;
use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// Connections of the pool. SQLite has one writer at a time, so more of them would only wait for each other.
const CONNECTIONS_MAX: u32 = 8;
/// How long a writer waits for another process's (say, the command line's) transaction.
const BUSY_TIMEOUT_SECONDS: u64 = 5;
/// How long a caller waits for a connection before it is told that the database is not available.
const ACQUIRE_TIMEOUT_SECONDS: u64 = 10;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

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
    /// The database's shape is not one this program can bring up to date.
    #[error("cannot bring the database up to date: use the program that wrote it, or restore a backup")]
    Migrate(#[source] MigrateError),
    /// The copy was not made.
    #[error("cannot copy the database to `{}`", path.display())]
    Backup {
        /// Where to.
        path: PathBuf,
        /// What SQLite or the system says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
}

impl Store {
    /// Opens the database at `path`, making folder and file (readable by this user alone) where they are missing, and
    /// brings its tables up to date.
    ///
    /// # Errors
    /// Every variant but [`StoreError::Missing`] and [`StoreError::Query`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        create_file(path)?;
        Self::connect(path).await
    }

    /// Like [`Store::open`], for callers to whom a new, empty database would be of no use.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such file; else as [`Store::open`].
    pub async fn open_existing(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        Self::connect(path).await
    }

    /// A database that lives as long as the value: for tests.
    ///
    /// # Errors
    /// [`StoreError::Open`] or [`StoreError::Migrate`].
    pub async fn open_in_memory() -> Result<Self, StoreError> {
        // Each connection to `:memory:` is a database of its own, so there is exactly one and it never ends.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(SqliteConnectOptions::new().in_memory(true).foreign_keys(true))
            .await
            .map_err(|source| StoreError::Open { path: PathBuf::from(":memory:"), source })?;
        Self::migrate(pool, None).await
    }

    async fn connect(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered with success must survive a power cut too; commits are rare next to the work they buy.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_SECONDS));
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(ACQUIRE_TIMEOUT_SECONDS))
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let changes = Changes::of(path, &options).await.map_err(failed)?;
        Self::migrate(pool, Some(changes)).await
    }

    async fn migrate(pool: SqlitePool, changes: Option<Changes>) -> Result<Self, StoreError> {
        MIGRATIONS.run(&pool).await.map_err(StoreError::Migrate)?;
        Ok(Self { pool, changes })
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

    /// Writes to the database, to see that it can be done: not locked, not read-only, the disk not full.
    ///
    /// # Errors
    /// [`StoreError::Query`] when it cannot.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        // A field of the file's header that SQLite leaves to the application: setting it is a whole write transaction
        // and touches no table.
        sqlx::query("PRAGMA user_version = 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Copies the database, as it stands at one moment, into a file that is not there yet and that this user alone can
    /// read; returns its size in bytes. Others can go on reading and writing meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Create`] when the file is there or cannot be made, [`StoreError::Backup`] when it cannot be filled;
    /// then it is removed.
    pub async fn backup(&self, path: &Path) -> Result<u64, StoreError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Backup { path: path.to_owned(), source };
        let name = path.to_str().ok_or_else(|| failed("the path is not valid UTF-8".into()))?;
        let file = create_private(OpenOptions::new().write(true).create_new(true), path)
            .map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        // SQLite fills an empty file, and keeps its rights.
        let copied = sqlx::query("VACUUM INTO ?").bind(name).execute(&self.pool).await;
        let outcome = match copied {
            Ok(_) => file.sync_all().and_then(|()| file.metadata()).map_err(|error| failed(error.into())),
            Err(error) => Err(failed(error.into())),
        };
        if outcome.is_err() {
            // What is left is no copy. Should it stay, the error that is reported matters more.
            drop(std::fs::remove_file(path));
        }
        outcome.map(|metadata| metadata.len())
    }

    /// Closes all connections; the write-ahead log is folded into the file. Queries fail afterwards.
    pub async fn close(&self) {
        self.pool.close().await;
        if let Some(changes) = &self.changes {
            changes.close().await;
        }
    }
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
mod tests {
    use super::*;

    async fn pragma(store: &Store, query: &'static str) -> String {
        let row: (String,) = sqlx::query_as(query).fetch_one(store.pool()).await.expect("a pragma");
        row.0
    }

    #[tokio::test]
    async fn a_new_database_is_private_and_keeps_a_write_ahead_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data/fluxserve.db");
        let store = Store::open(&path).await.expect("opens");
        store.check_writable().await.expect("writable");
        assert_eq!(pragma(&store, "SELECT journal_mode FROM pragma_journal_mode").await, "wal");
        assert_eq!(pragma(&store, "SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys").await, "1");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(&folder.path().join("data/fluxserve.db-wal")), 0o600);
            assert_eq!(mode(&folder.path().join("data")), 0o700);
        }
    }

    #[tokio::test]
    async fn a_backup_is_whole_private_and_never_over_another_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
        let sql = "INSERT INTO result_link_secret (only_row, secret) VALUES (1, zeroblob(32))";
        sqlx::query(sql).execute(store.pool()).await.expect("written");
        let copy = folder.path().join("copy.db");
        let bytes = store.backup(&copy).await.expect("copied");
        assert_eq!(std::fs::metadata(&copy).expect("there").len(), bytes);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&copy).expect("there").permissions().mode() & 0o777, 0o600);
        }
        let before = std::fs::read(&copy).expect("readable");
        assert!(matches!(store.backup(&copy).await, Err(StoreError::Create { .. })));
        assert_eq!(std::fs::read(&copy).expect("readable"), before);
        let restored = Store::open_existing(&copy).await.expect("a database");
        assert_eq!(pragma(&restored, "SELECT hex(secret) FROM result_link_secret").await, "00".repeat(32));

        store.close().await;
        let never = folder.path().join("never.db");
        assert!(matches!(store.backup(&never).await, Err(StoreError::Backup { .. })));
        assert!(!never.exists(), "nothing is left of a copy that failed");
    }

    #[tokio::test]
    async fn opening_twice_migrates_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fluxserve.db");
        Store::open(&path).await.expect("opens").close().await;
        Store::open_existing(&path).await.expect("opens again");
    }

    #[tokio::test]
    async fn a_missing_database_is_not_made_for_readers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fluxserve.db");
        let error = Store::open_existing(&path).await.expect_err("nothing is there");
        assert!(matches!(error, StoreError::Missing { .. }));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_with_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fluxserve.db");
        std::fs::write(&path, "not a database, only a text that is long enough to be looked at".repeat(20))
            .expect("written");
        let error = Store::open(&path).await.expect_err("no database");
        assert!(error.to_string().contains("fluxserve.db"), "{error}");
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_written_is_noticed() {
        let store = Store::open_in_memory().await.expect("opens");
        store.check_writable().await.expect("writable");
        sqlx::query("PRAGMA query_only = ON").execute(store.pool()).await.expect("set");
        assert!(matches!(store.check_writable().await, Err(StoreError::Query(_))));
    }

    #[tokio::test]
    async fn a_database_of_a_newer_program_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fluxserve.db");
        let store = Store::open(&path).await.expect("opens");
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9999, 'later', TRUE, x'00', 0)";
        sqlx::query(newer).execute(store.pool()).await.expect("inserted");
        store.close().await;
        assert!(matches!(Store::open(&path).await, Err(StoreError::Migrate(_))));
    }
}
