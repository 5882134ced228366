//! What `models convert` makes of which part of a model.

use std::fmt;
use std::str::FromStr;

/// Form of the weights in a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// GGUF with matrices in Q8_0: 8.5 bits a number.
    GgufQ8_0,
    /// GGUF with matrices in Q4_0: 4.5 bits a number.
    GgufQ4_0,
    /// GGUF with matrices in Q4_K: 4.5 bits a number, closer to the original than Q4_0.
    GgufQ4K,
    /// safetensors with matrices in e4m3 and a scale for each matrix, as ComfyUI has them.
    Fp8,
    /// safetensors in bf16.
    Bf16,
}

/// A word that is not a form of weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a format: use `gguf:q8_0`, `gguf:q4_0`, `gguf:q4_k`, `fp8` or `bf16`")]
pub struct UnknownFormat;

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::GgufQ8_0, Self::GgufQ4_0, Self::GgufQ4K, Self::Fp8, Self::Bf16];

    /// The ending of a file's name.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::GgufQ8_0 | Self::GgufQ4_0 | Self::GgufQ4K => "gguf",
            Self::Fp8 | Self::Bf16 => "safetensors",
        }
    }
}

impl FromStr for WeightFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|format| format.to_string() == lower).ok_or(UnknownFormat)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GgufQ8_0 => "gguf:q8_0",
            Self::GgufQ4_0 => "gguf:q4_0",
            Self::GgufQ4K => "gguf:q4_k",
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
        })
    }
}

/// Component of a model that can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvertedComponent {
    /// The transformer.
    #[default]
    Transformer,
    /// T5, the second text encoder.
    T5,
}

/// A word that is not a component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a component: use `transformer` or `t5`")]
pub struct UnknownComponent;

impl FromStr for ConvertedComponent {
    type Err = UnknownComponent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "transformer" => Ok(Self::Transformer),
            "t5" => Ok(Self::T5),
            _ => Err(UnknownComponent),
        }
    }
}

impl fmt::Display for ConvertedComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transformer => "transformer",
            Self::T5 => "t5",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for format in WeightFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(format.to_string().to_uppercase().parse(), Ok(format));
            assert_eq!(format.to_string().starts_with("gguf:"), format.ending() == "gguf");
        }
        for text in ["", "q8_0", "gguf", "gguf:q6_k", "e4m3", "f32"] {
            assert_eq!(text.parse::<WeightFormat>(), Err(UnknownFormat), "{text:?}");
        }
        for component in [ConvertedComponent::Transformer, ConvertedComponent::T5] {
            assert_eq!(component.to_string().parse(), Ok(component));
        }
        for text in ["", "vae", "T5", "clip"] {
            assert_eq!(text.parse::<ConvertedComponent>(), Err(UnknownComponent), "{text:?}");
        }
    }
}
