//! Errors of the database.

use std::io;
use std::path::PathBuf;

use sqlx::migrate::MigrateError;

/// Why the database failed. The cause is the error's source, not part of its text.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or its folder cannot be created.
    #[error("cannot create `{}`", path.display())]
    Create {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no database, and the caller did not ask for a new one.
    #[error("there is no database at `{}`: check the data directory", path.display())]
    Missing {
        /// Its expected path.
        path: PathBuf,
    },
    /// The file exists and cannot be opened.
    #[error("cannot open the database `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: sqlx::Error,
    },
    /// The file is empty.
    #[error("`{}` has none of this program's tables: restore a backup, or run `fluxserve serve` to create them", path.display())]
    Blank {
        /// The file.
        path: PathBuf,
    },
    /// A newer program wrote it, or one built from other sources.
    #[error("the database `{}` is of another version: use the program that wrote it, or restore a backup", path.display())]
    OtherProgram {
        /// The file.
        path: PathBuf,
        /// The difference.
        source: MigrateError,
    },
    /// The disk, or this user's quota of it, is full.
    #[error("there is no space for the database `{}`: free space on the disk", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is no database, or an incomplete one.
    #[error("the database `{}` is damaged: restore a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process holds it.
    #[error("another process holds the database `{}`: try again when it is done", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The migration failed for any other reason.
    #[error("cannot migrate the database `{}`", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: MigrateError,
    },
    /// The copy failed.
    #[error("cannot copy the database to `{}`", path.display())]
    Backup {
        /// Path of the copy.
        path: PathBuf,
        /// Error of SQLite or of the system.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the open database is no longer the one under its name.
    #[error("`{}` was removed or replaced while the database was open: further writes would be lost", path.display())]
    TakenAway {
        /// The file.
        path: PathBuf,
    },
    /// Another connection does not see a committed write.
    #[error("other connections do not see what is written to the database")]
    NotSeen,
    /// A query failed: busy, full, or broken. A retry may help.
    #[error("the database failed")]
    Query(#[from] sqlx::Error),
}
