//! Numeric precision of a model.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Format in which the linear layers of a model's blocks store and multiply their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full precision: bf16 on CUDA, f32 on the CPU.
    #[default]
    Full,
    /// bf16, with sums in f32, on the CPU, in attention, T5 and ControlNets, too: half the memory of f32, and lossy. Faster on processors
    /// that multiply bf16, with the same bits on others. CUDA computes in bf16 in full precision.
    Bf16,
    /// fp8 (e4m3), with a scale per row of weights and per token: half the memory, meant to be faster on GPUs with fp8,
    /// and lossy. Weights of a file in e4m3 keep its codes. On the CPU the same rounding, no faster.
    Fp8,
}

/// A word that is not a precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a precision: use `full`, or `bf16` or `fp8`, which are lossy")]
pub struct UnknownPrecision;

impl Precision {
    /// Whether images differ from those in full precision.
    #[must_use]
    pub fn is_lossy(self) -> bool {
        match self {
            Self::Full => false,
            Self::Bf16 | Self::Fp8 => true,
        }
    }

    /// Whether weights are quantized once, when they are loaded, and so have to stay in memory.
    #[must_use]
    pub fn quantizes(self) -> bool {
        match self {
            Self::Full | Self::Bf16 => false,
            Self::Fp8 => true,
        }
    }

    /// This precision if it is lossy, and so has to be reported.
    #[must_use]
    pub fn if_lossy(self) -> Option<Self> {
        self.is_lossy().then_some(self)
    }
}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "full" => Ok(Self::Full),
            "bf16" => Ok(Self::Bf16),
            "fp8" => Ok(Self::Fp8),
            _ => Err(UnknownPrecision),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for precision in [Precision::Full, Precision::Bf16, Precision::Fp8] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            assert_eq!(serde_json::to_string(&precision).expect("JSON"), format!("\"{precision}\""));
        }
        for text in ["", "FP8", "f32", "e4m3"] {
            assert_eq!(text.parse::<Precision>(), Err(UnknownPrecision), "{text:?}");
        }
        let lossy = [Precision::Full, Precision::Bf16, Precision::Fp8].map(Precision::if_lossy);
        assert_eq!(lossy, [None, Some(Precision::Bf16), Some(Precision::Fp8)]);
    }
}
