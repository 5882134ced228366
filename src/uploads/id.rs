//! The id of an upload.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::domain::ids::InvalidId;

/// Hexadecimal digits of an id.
const DIGITS: usize = 64;

/// An upload, by the SHA-256 of its file: 64 lower-case hexadecimal digits. It says nothing without its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(String);

impl UploadId {
    /// The id of a file with this SHA-256.
    pub(super) fn of_sha256(digest: [u8; 32]) -> Self {
        let mut digits = String::with_capacity(DIGITS);
        for byte in digest {
            write!(digits, "{byte:02x}").expect("a string takes any text");
        }
        Self(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UploadId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_valid = text.len() == DIGITS && text.bytes().all(is_digit);
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidId { kind: "upload" }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_digest_in_lower_case() {
        let id = UploadId::of_sha256([0x0a; 32]);
        assert_eq!(id.as_str(), "0a".repeat(32));
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "0a", &"0A".repeat(32), &"0g".repeat(32), &"0a".repeat(33), "../../etc/passwd"] {
            assert!(text.parse::<UploadId>().is_err(), "{text}");
        }
    }
}
