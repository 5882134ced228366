//! What can be wrong with the configuration.

use std::io;
use std::path::PathBuf;

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file stands in the working directory, nobody has named it, and it is not certainly the user's own.
    #[error(
        "the configuration file `{}` of the working directory is not used, because {reason}; or name it with `--config`, if \
         you trust it",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The file is no TOML, or has a field that does not exist or is of another type.
    #[error("configuration file `{}`: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// A value is not one that can be used.
    #[error("{place}: {reason}")]
    Value {
        /// File and field, variable, or flag.
        place: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}
