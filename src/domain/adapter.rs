//! Adapters (LoRA and its relatives) as requests use them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::ids::InvalidId;

/// Maximum adapters of one image.
pub const ADAPTERS_MAX: usize = 8;

/// Largest strength of an adapter, of either sign.
pub const SCALE_MAX: f64 = 10.0;

/// The field of a request's adapters.
pub const LORAS: &str = "loras";

/// An adapter, by the SHA-256 of its file: 64 lower-case hexadecimal digits. The same file has the same id everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(Arc<str>);

impl AdapterId {
    /// The id of a file with this SHA-256.
    #[must_use]
    pub fn of_sha256(digest: [u8; 32]) -> Self {
        let digits: String = digest
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect();
        Self(digits.into())
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file of the adapter with this id in the folder of adapters.
    #[must_use]
    pub fn file_in(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{self}.safetensors"))
    }
}

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AdapterId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_valid = text.len() == 64 && text.bytes().all(is_digit);
        if is_valid { Ok(Self(text.into())) } else { Err(InvalidId { kind: "adapter" }) }
    }
}

/// An adapter of an image, and how strongly it acts.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterUse {
    /// The adapter.
    pub id: AdapterId,
    /// Its file.
    pub file: Arc<Path>,
    /// What its changes are multiplied by; 0 changes nothing, a negative one moves the other way. At most [`SCALE_MAX`].
    pub scale: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_digest_in_lower_case() {
        let id = AdapterId::of_sha256([0xa5; 32]);
        assert_eq!(id.to_string(), "a5".repeat(32));
        assert_eq!("a5".repeat(32).parse(), Ok(id));
        for text in ["", "a5", &"A5".repeat(32), &"g5".repeat(32), &"a5".repeat(33)] {
            assert!(text.parse::<AdapterId>().is_err(), "{text}");
        }
    }
}
