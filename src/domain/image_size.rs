//! An image's size, as the command line writes it: `WIDTHxHEIGHT`.

use std::fmt;
use std::str::FromStr;

/// An image's size in pixels. A model's card says which sizes it generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a size: use `WIDTHxHEIGHT` in pixels, as in `1024x768`")]
pub struct InvalidImageSize;

impl ImageSize {
    /// Total pixels.
    #[must_use]
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl FromStr for ImageSize {
    type Err = InvalidImageSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (width, height) = text.split_once('x').ok_or(InvalidImageSize)?;
        let pixels = |side: &str| side.parse().map_err(|_| InvalidImageSize);
        Ok(Self { width: pixels(width)?, height: pixels(height)? })
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_comes_first() {
        let size: ImageSize = "1024x768".parse().expect("a size");
        assert_eq!((size.width, size.height, size.pixels()), (1024, 768, 786_432));
        assert_eq!(size.to_string(), "1024x768");
        for text in ["", "1024", "1024x", "x768", "1024X768", "-1x2", "1024x768x3", "4294967296x1"] {
            assert_eq!(text.parse::<ImageSize>(), Err(InvalidImageSize), "{text:?}");
        }
    }
}
