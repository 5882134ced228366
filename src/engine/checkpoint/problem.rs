//! What can be wrong with a checkpoint, in words for the person who has to fix it.

use std::fmt;

/// One thing that is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required file is missing.
    #[error("{path}: missing{hint}")]
    MissingFile {
        /// Path inside the checkpoint.
        path: String,
        /// More about it, starting with a separator, or empty.
        hint: String,
    },
    /// A file cannot be read, or its content is invalid.
    #[error("{path}: {reason}")]
    UnreadableFile {
        /// Path inside the checkpoint.
        path: String,
        /// The reason.
        reason: String,
    },
    /// A tensor that the configuration requires is in none of the files.
    #[error("{file}: tensor `{tensor}` is missing, expected shape {expected:?}")]
    MissingTensor {
        /// The file or index that should name it.
        file: String,
        /// Its name there.
        tensor: String,
        /// The shape that the configuration requires.
        expected: Vec<usize>,
    },
    /// A tensor that the configuration does not use: the two do not belong together.
    #[error("{file}: tensor `{tensor}` of shape {found:?} is surplus, the configuration has no place for it")]
    SurplusTensor {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of another shape than the configuration requires.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// The shape that the configuration requires.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of an unsupported type.
    #[error("{file}: tensor `{tensor}` has type {found}, expected BF16, F16, F32, fp8, Q2_K to Q8_0, or IQ4")]
    Dtype {
        /// The file that holds it.
        file: String,
        /// Its name there.
        tensor: String,
        /// Its type.
        found: String,
    },
}

impl Problem {
    pub(crate) fn missing(path: impl Into<String>) -> Self {
        Self::MissingFile { path: path.into(), hint: String::new() }
    }

    pub(crate) fn unreadable(path: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::UnreadableFile { path: path.into(), reason: reason.to_string() }
    }
}

/// Maximum problems an error message lists; `models check` lists all.
const LISTED_MAX: usize = 12;

/// The first problems, one a line.
pub(super) fn bullet_list(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if problems.len() > LISTED_MAX {
        lines.push(format!("and {} more", problems.len() - LISTED_MAX));
    }
    lines.into_iter().flat_map(|line| ["\n  - ".to_owned(), line]).collect()
}
