//! Pixels to PNG, JPEG or WebP bytes.
//!
//! Owns the settings of the formats. Knows nothing of jobs or HTTP; encoding takes milliseconds to
//! hundreds of milliseconds of processor time, so callers keep it off the async threads.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;

/// JPEG quality, 1 to 100. At 92 block edges cannot be seen on generated pictures; above it files grow for nothing.
pub const JPEG_QUALITY: u8 = 92;

/// Why a picture could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be written as {format}: {cause}")]
pub struct EncodeError {
    /// The format that refused it.
    pub format: OutputFormat,
    /// What the encoder said; for the log.
    pub cause: String,
}

/// Encodes a picture.
///
/// # Errors
/// When the format cannot hold it, for example a side beyond the format's limit.
pub fn encode(picture: &RgbImage, format: OutputFormat) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Cursor::new(Vec::new());
    let (pixels, width, height) = (picture.pixels(), picture.width(), picture.height());
    let color = ExtendedColorType::Rgb8;
    let outcome = match format {
        OutputFormat::Png => PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
            .write_image(pixels, width, height, color),
        OutputFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(pixels, width, height, color)
        }
        OutputFormat::Webp => WebPEncoder::new_lossless(&mut bytes).write_image(pixels, width, height, color),
    };
    outcome.map_err(|error| EncodeError { format, cause: error.to_string() })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x ^ y) as u8]));
        RgbImage::new(width, height, pixels.collect()).expect("three bytes per pixel")
    }

    #[test]
    fn lossless_formats_give_the_same_pixels_back() {
        let picture = gradient(48, 32);
        for format in [OutputFormat::Png, OutputFormat::Webp] {
            let bytes = encode(&picture, format).expect("encodes");
            let decoded = image::load_from_memory(&bytes).expect("decodes").to_rgb8();
            assert_eq!((decoded.width(), decoded.height()), (48, 32));
            assert_eq!(decoded.as_raw(), picture.pixels(), "{format}");
        }
    }

    #[test]
    fn jpeg_stays_close() {
        let flat = RgbImage::new(16, 16, [200, 40, 90].repeat(256)).expect("three bytes per pixel");
        let bytes = encode(&flat, OutputFormat::Jpeg).expect("encodes");
        let decoded = image::load_from_memory(&bytes).expect("decodes").to_rgb8();
        assert!(decoded.as_raw().iter().zip(flat.pixels()).all(|(found, meant)| found.abs_diff(*meant) <= 3));
    }

    #[test]
    fn bytes_begin_as_their_content_type_says() {
        let picture = gradient(16, 16);
        for (format, start) in [
            (OutputFormat::Png, &b"\x89PNG"[..]),
            (OutputFormat::Jpeg, &b"\xff\xd8\xff"[..]),
            (OutputFormat::Webp, &b"RIFF"[..]),
        ] {
            assert!(encode(&picture, format).expect("encodes").starts_with(start), "{format}");
        }
    }
}
