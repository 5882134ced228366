//! What the head of an image file says. Its pixels are not decoded.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{DECODING_BYTES_MAX, DecodeError, PIXELS_MAX, SIDE_MAX, check_bytes, orientation};
use crate::domain::format::OutputFormat;

/// What the head of an image file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The file's format.
    pub format: OutputFormat,
    /// Pixels across, once the image is upright.
    pub width: u32,
    /// Pixels down, once the image is upright.
    pub height: u32,
}

/// A file of which the head has been read.
pub(super) struct Opened<D> {
    pub(super) decoder: D,
    pub(super) format: OutputFormat,
    /// How the image becomes upright.
    pub(super) orientation: Orientation,
}

impl<D> Opened<D> {
    /// The error of a file that turns out to be damaged behind its head.
    pub(super) fn damaged(format: OutputFormat) -> DecodeError {
        let format = match format {
            OutputFormat::Png => "PNG",
            OutputFormat::Jpeg => "JPEG",
            OutputFormat::Webp => "WebP",
        };
        DecodeError::Damaged { format }
    }
}

/// Reads the head of a PNG, JPEG or WebP file of any size, and checks the bounds of its pixels.
pub(super) fn open(bytes: &[u8]) -> Result<Opened<impl ImageDecoder>, DecodeError> {
    let (kind, format) = match image::guess_format(bytes) {
        Ok(kind @ ImageFormat::Png) => (kind, OutputFormat::Png),
        Ok(kind @ ImageFormat::Jpeg) => (kind, OutputFormat::Jpeg),
        Ok(kind @ ImageFormat::WebP) => (kind, OutputFormat::Webp),
        _ => return Err(DecodeError::Format),
    };
    let damaged = |_| Opened::<()>::damaged(format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODING_BYTES_MAX);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), kind);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(DecodeError::Pixels { width, height });
    }
    if width.max(height) > SIDE_MAX {
        return Err(DecodeError::Sides { width, height });
    }
    // Parsed here, because the decoders accept it only in the standard's form.
    let orientation = orientation::of_exif(&decoder.exif_metadata().map_err(damaged)?.unwrap_or_default());
    Ok(Opened { decoder, format, orientation })
}

/// Reads the head of a PNG, JPEG or WebP file. What [`decode`](super::decode) refuses because of its size is refused here.
///
/// # Errors
/// When it is not such a file, or exceeds a bound. A file whose head is whole may still be damaged.
pub fn inspect(bytes: &[u8]) -> Result<ImageHeader, DecodeError> {
    check_bytes(bytes)?;
    let Opened { decoder, format, orientation } = open(bytes)?;
    let (width, height) = upright(decoder.dimensions(), orientation);
    Ok(ImageHeader { format, width, height })
}

/// The size of an image once its orientation is applied.
fn upright((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => (width, height),
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder as _};

    use super::*;
    use crate::decode::{FILE_BYTES_MAX, decode};
    use crate::domain::image::RgbImage;
    use crate::encode::encode;

    #[test]
    fn the_head_says_what_decoding_finds() {
        let image = RgbImage::new(48, 32, vec![90; 48 * 32 * 3]).expect("three bytes per pixel");
        for format in OutputFormat::ALL {
            let bytes = encode(&image, format).expect("encodes");
            assert_eq!(inspect(&bytes), Ok(ImageHeader { format, width: 48, height: 32 }));
        }
        // TIFF, little endian: one entry, orientation 6 (rotate right).
        let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let mut lying = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut lying, 95);
        encoder.set_exif_metadata(exif).expect("JPEG can hold it");
        encoder.write_image(image.pixels(), 48, 32, ExtendedColorType::Rgb8).expect("encodes");
        let decoded = decode(&lying).expect("decodes");
        let header = inspect(&lying).expect("an image");
        assert_eq!((header.width, header.height), (decoded.width(), decoded.height()));
        assert_eq!((header.width, header.height), (32, 48));
    }

    #[test]
    fn what_is_no_image_or_too_large_is_refused_as_in_decoding() {
        let image = RgbImage::new(8, 8, vec![90; 8 * 8 * 3]).expect("three bytes per pixel");
        let mut bomb = encode(&image, OutputFormat::Png).expect("encodes");
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&sum);
        let cut = encode(&image, OutputFormat::Webp).expect("encodes")[..16].to_vec();
        let large = vec![0; FILE_BYTES_MAX + 1];
        for bytes in [&b""[..], b"GIF89a", &bomb[..], &cut[..], &large[..]] {
            let refused = inspect(bytes).expect_err("refused");
            assert_eq!(decode(bytes).expect_err("refused"), refused);
        }
    }
}
