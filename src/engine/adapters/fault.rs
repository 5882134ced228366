//! What can be wrong with an adapter whose modules are known. A file with any of it is refused: it would be applied in part, or
//! wrongly.

use crate::engine::checkpoint::shown;

/// One thing that is wrong with an adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A tensor of another shape than the module's.
    #[error("tensor `{}` has shape {found:?}, `{module}` takes {expected}", shown(.tensor))]
    Shape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The module's name in the model.
        module: String,
        /// The shape that the module takes.
        expected: String,
    },
    /// Two factors that cannot be multiplied.
    #[error("tensor `{}` has rank {}, `{}` has rank {}", shown(.first), .ranks[0], shown(.second), .ranks[1])]
    Ranks {
        /// The name of the first factor.
        first: String,
        /// That of the second.
        second: String,
        /// Their ranks.
        ranks: [usize; 2],
    },
    /// A rank that no adapter has.
    #[error("tensor `{}` has rank {rank}, expected 1 to {max}", shown(.tensor))]
    Rank {
        /// The name of the factor.
        tensor: String,
        /// Its rank.
        rank: usize,
        /// Largest rank that is read.
        max: usize,
    },
    /// A change of which a part is missing.
    #[error("`{}` has {has}, and no {lacks}", shown(.path))]
    Missing {
        /// The module's name in the file.
        path: String,
        /// What it has.
        has: &'static str,
        /// What is missing.
        lacks: &'static str,
    },
    /// A tensor of a type that says no weights.
    #[error("tensor `{}` has type {found}, expected BF16, F16, F32, F64 or fp8", shown(.tensor))]
    Dtype {
        /// Its name.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor with numbers that would make every image noise.
    #[error("tensor `{}` has {value} in it: the file is damaged, or its training failed", shown(.tensor))]
    NotFinite {
        /// Its name.
        tensor: String,
        /// The first such number.
        value: String,
    },
    /// An alpha that is no single number.
    #[error("tensor `{}` must be one number, it has shape {found:?}", shown(.tensor))]
    Alpha {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// Two changes of the same weights, which different dialects name.
    #[error("`{module}` is changed twice, by `{}` and by `{}`", shown(.first), shown(.second))]
    Twice {
        /// The module's name in the model.
        module: String,
        /// The one name.
        first: String,
        /// The other name.
        second: String,
    },
    /// A change that cannot be made to this module.
    #[error("`{}`: {reason}", shown(.path))]
    Impossible {
        /// The module's name in the file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// Scales that the metadata has, and that cannot be read.
    #[error("metadata `lora_adapter_metadata`, which has the scales: {}", shown(.0))]
    Settings(String),
    /// The file could not be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Maximum faults that a message lists.
const LISTED_MAX: usize = 12;

/// The first faults, one a line.
pub(super) fn bullet_list(faults: &[Fault]) -> String {
    let mut lines: Vec<String> = faults.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if faults.len() > LISTED_MAX {
        lines.push(format!("and {} more", faults.len() - LISTED_MAX));
    }
    lines.into_iter().flat_map(|line| ["\n  - ".to_owned(), line]).collect()
}
