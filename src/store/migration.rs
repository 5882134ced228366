//! Migration of the tables, one process at a time: sqlx's migrator takes no lock on SQLite, so two concurrent starts would
//! both create the same table.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};

use super::error::StoreError;
use super::private_file::open_private;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Longest wait for another process's migrations.
const LOCK_WAIT_MAX: Duration = Duration::from_mins(1);
/// Time between two attempts to take the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Held while the database is opened and migrated; the system releases it when the process ends.
pub(super) struct MigrationLock(#[expect(dead_code, reason = "the open file is the lock")] Option<File>);

impl MigrationLock {
    /// Takes the lock of the database at `path`, waiting for another process that holds it.
    pub(super) async fn take(path: &Path) -> Result<Self, StoreError> {
        // A file of its own: closing any descriptor of the database's file would release SQLite's locks.
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let failed = |source| StoreError::Create { path: name.clone(), source };
        let file = open_private(OpenOptions::new().write(true).create(true).truncate(false), &name).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WAIT_MAX => {}
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: path.to_owned() }),
                Err(TryLockError::Error(error)) => {
                    let path = name.display();
                    tracing::warn!(%error, "cannot lock `{path}`: do not let two processes open the database at the same time");
                    return Ok(Self(None));
                }
            }
            tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
        }
    }
}

/// Whether this program has never used it: empty, or without its tables.
pub(super) async fn is_blank(pool: &SqlitePool) -> Result<bool, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'")
        .fetch_one(pool)
        .await?;
    Ok(tables == 0)
}

/// Runs pending migrations on the database at `path`.
pub(super) async fn run(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let path = path.to_owned();
    MIGRATIONS.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(_)
        | MigrateError::VersionMismatch(_)
        | MigrateError::VersionNotPresent(_)
        | MigrateError::VersionTooNew(..)
        | MigrateError::VersionTooOld(..) => StoreError::OtherProgram { path, source: error },
        MigrateError::Execute(ref cause) | MigrateError::ExecuteMigration(ref cause, _) => match Cause::of(cause) {
            Some(cause) => cause.into_error(path, Box::new(error)),
            None => StoreError::Migrate { path, source: error },
        },
        _ => StoreError::Migrate { path, source: error },
    })
}

/// Why a database cannot be used, by SQLite's result code (sqlite.org/rescode.html).
pub(super) enum Cause {
    Full,
    Damaged,
    Locked,
}

impl Cause {
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
        // The extended codes have the primary one in their last byte.
        match code & 0xff {
            // SQLITE_BUSY, SQLITE_LOCKED
            5 | 6 => Some(Self::Locked),
            // SQLITE_CORRUPT, SQLITE_NOTADB
            11 | 26 => Some(Self::Damaged),
            // SQLITE_FULL
            13 => Some(Self::Full),
            _ => None,
        }
    }

    pub(super) fn into_error(self, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        match self {
            Self::Full => StoreError::Full { path, source },
            Self::Damaged => StoreError::Damaged { path, source },
            Self::Locked => StoreError::Locked { path },
        }
    }
}
