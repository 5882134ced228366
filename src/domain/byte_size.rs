//! A size in bytes, as people write it.

use std::str::FromStr;

/// A number of bytes: `12GiB`, `16 GB`, `512MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub usize);

/// A word that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a size: write a whole number and `GiB`, `GB`, `MiB` or `MB`, such as `12GiB`")]
pub struct UnknownByteSize;

impl FromStr for ByteSize {
    type Err = UnknownByteSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit: usize = match unit.trim_start() {
            "GiB" => 1 << 30,
            "GB" => 1_000_000_000,
            "MiB" => 1 << 20,
            "MB" => 1_000_000,
            _ => return Err(UnknownByteSize),
        };
        let number: usize = number.parse().map_err(|_| UnknownByteSize)?;
        number.checked_mul(unit).map(Self).ok_or(UnknownByteSize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, bytes) in [("12GiB", 12 << 30), ("16 GB", 16_000_000_000), ("512MiB", 512 << 20), ("1MB", 1_000_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "12", "GiB", "1.5GiB", "-1GiB", "12gib", "99999999999999GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(UnknownByteSize), "{text:?}");
        }
    }
}
