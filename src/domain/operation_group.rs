//! The groups in which an engine's operations are tested, as the command line writes them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A group of operations that are tested together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationGroup {
    /// Every operation, by the kernels that run on every device, on small shapes.
    Portable,
    /// Attention by Hopper's kernel.
    AttentionHopper,
    /// Convolutions by Hopper's kernel.
    ConvolutionHopper,
    /// Convolutions of an image whose sides are doubled first, by Hopper's kernel.
    DoubledHopper,
    /// Matrix products of FLUX.1's own widths.
    Products,
    /// The autoencoder: its widths, and a small decoder.
    Autoencoder,
    /// Operations in fp8 (e4m3).
    Fp8,
}

impl OperationGroup {
    /// All groups, in the order in which they are tested.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::AttentionHopper,
        Self::ConvolutionHopper,
        Self::DoubledHopper,
        Self::Products,
        Self::Autoencoder,
        Self::Fp8,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AttentionHopper => "attention-hopper",
            Self::ConvolutionHopper => "convolution-hopper",
            Self::DoubledHopper => "doubled-hopper",
            Self::Products => "products",
            Self::Autoencoder => "autoencoder",
            Self::Fp8 => "fp8",
        }
    }
}

impl fmt::Display for OperationGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that is not a group of operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a group of operations: use {}", OperationGroup::ALL.map(|group| format!("`{group}`")).join(", "))]
pub struct UnknownOperationGroup;

impl FromStr for OperationGroup {
    type Err = UnknownOperationGroup;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|group| group.name() == text).ok_or(UnknownOperationGroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_written_as_they_are_parsed_and_reported() {
        for group in OperationGroup::ALL {
            assert_eq!(group.to_string().parse(), Ok(group));
            assert_eq!(serde_json::to_value(group).expect("JSON"), serde_json::Value::from(group.name()));
        }
        assert_eq!("Portable".parse::<OperationGroup>(), Err(UnknownOperationGroup));
        let words = UnknownOperationGroup.to_string();
        assert!(words.contains("use `portable`, `attention-hopper`,"), "{words}");
    }
}
