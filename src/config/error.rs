//! Errors of the configuration.

use std::io;
use std::path::PathBuf;

/// Why the configuration is invalid, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is in the working directory, was not named, and may not be the user's own.
    #[error(
        "the configuration file `{}` in the working directory is not used, because {reason}; or name it with `--config` if you \
         trust it",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to fix it.
        reason: String,
    },
    /// The file is not TOML, or has an unknown field or one of another type.
    #[error("configuration file `{}`: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// A value is invalid.
    #[error("{place}: {reason}")]
    Value {
        /// File and field, variable, or flag.
        place: String,
        /// What is wrong and how to fix it.
        reason: String,
    },
}
