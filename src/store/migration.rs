//! Brings the tables up to date, one process at a time: sqlx's migrator takes no lock on SQLite, so two that start at once
//! would each make the same table.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};

use super::{StoreError, create_private};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How long another process's migrations are waited for.
const LOCK_WAIT_MAX: Duration = Duration::from_mins(1);
/// How often is looked whether they are done.
const LOCK_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Held while the database is opened and brought up to date; the system lets go of it when the process ends.
pub(super) struct MigrationLock(#[expect(dead_code, reason = "the open file is the lock")] Option<File>);

impl MigrationLock {
    /// Takes it for the database at `path`, waiting for whoever has it.
    pub(super) async fn take(path: &Path) -> Result<Self, StoreError> {
        // A file of its own: to close any descriptor of the database's would take SQLite's locks off it.
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let failed = |source| StoreError::Create { path: name.clone(), source };
        let file =
            create_private(OpenOptions::new().write(true).create(true).truncate(false), &name).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WAIT_MAX => {}
                Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: path.to_owned() }),
                Err(TryLockError::Error(error)) => {
                    let path = name.display();
                    tracing::warn!(%error, "`{path}` cannot be locked: let no two processes open the database at once");
                    return Ok(Self(None));
                }
            }
            tokio::time::sleep(LOCK_LOOK_INTERVAL).await;
        }
    }
}

/// Whether this program has never had anything to do with it: empty, or without our tables.
pub(super) async fn is_blank(pool: &SqlitePool) -> Result<bool, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'")
        .fetch_one(pool)
        .await?;
    Ok(tables == 0)
}

/// Runs what has not been run yet on the database at `path`.
pub(super) async fn run(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let path = path.to_owned();
    MIGRATIONS.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(_)
        | MigrateError::VersionMismatch(_)
        | MigrateError::VersionNotPresent(_)
        | MigrateError::VersionTooNew(..)
        | MigrateError::VersionTooOld(..) => StoreError::OtherProgram { path, source: error },
        MigrateError::Execute(ref cause) | MigrateError::ExecuteMigration(ref cause, _) => match Cause::of(cause) {
            Some(cause) => cause.told_of(path, Box::new(error)),
            None => StoreError::Migrate { path, source: error },
        },
        _ => StoreError::Migrate { path, source: error },
    })
}

/// What is wrong with a database that could not be used, where SQLite's result code says so (sqlite.org/rescode.html).
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

    pub(super) fn told_of(self, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        match self {
            Self::Full => StoreError::Full { path, source },
            Self::Damaged => StoreError::Damaged { path, source },
            Self::Locked => StoreError::Locked { path },
        }
    }
}
