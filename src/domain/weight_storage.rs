//! How a model's weights are kept in memory.

use std::fmt;
use std::str::FromStr;

/// How the weights of a quantized or half-precision file are kept in memory. Images do not depend on it, except in fp8, where the
/// weights of a file in e4m3 are quantized again after they were expanded, and not otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightStorage {
    /// Expanded where that fits: on CUDA, and on the CPU into half of the memory that is available. As stored in bf16 on the CPU.
    #[default]
    Auto,
    /// As their file stores them: they take the file's size, and are expanded whenever they are multiplied.
    AsStored,
    /// Expanded to the precision of the computation when they are loaded: bf16 on CUDA, on the CPU f32, or what is asked for.
    Expanded,
}

/// A word that is not a way to keep weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a way to keep weights: use `auto`, `as-stored` or `expanded`")]
pub struct UnknownWeightStorage;

impl FromStr for WeightStorage {
    type Err = UnknownWeightStorage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "as-stored" => Ok(Self::AsStored),
            "expanded" => Ok(Self::Expanded),
            _ => Err(UnknownWeightStorage),
        }
    }
}

impl fmt::Display for WeightStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::AsStored => "as-stored",
            Self::Expanded => "expanded",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for storage in [WeightStorage::Auto, WeightStorage::AsStored, WeightStorage::Expanded] {
            assert_eq!(storage.to_string().parse(), Ok(storage));
        }
        for text in ["", "stored", "As-Stored"] {
            assert_eq!(text.parse::<WeightStorage>(), Err(UnknownWeightStorage), "{text:?}");
        }
    }
}
