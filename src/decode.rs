//! Picture files that others bring, to pixels.
//!
//! Owns the bounds of what is looked at, and how a picture becomes one that can be started from: of the right size, and
//! in plain RGB. Knows nothing of jobs or HTTP; decoding takes up to some hundred milliseconds of processor time, so
//! callers keep it off the async threads.

use std::io::Cursor;
use std::sync::Arc;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageBuffer, ImageDecoder as _, ImageFormat, ImageReader, Limits, Rgb};

use crate::domain::engine::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{GenerateParams, size_errors};

/// Largest file, in bytes: more than a telephone's camera makes.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most pixels of a picture, before it is brought to the size that is drawn.
pub const PIXELS_MAX: u64 = 32_000_000;
/// Most memory for decoding one picture: [`PIXELS_MAX`] with four channels of 16 bits.
const DECODING_BYTES_MAX: u64 = 8 * PIXELS_MAX;

/// What is wrong with a picture's file, in words for whoever has brought it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The file is too large.
    #[error("must be a file of at most {FILE_BYTES_MAX} bytes, not {bytes}")]
    Bytes {
        /// Its size.
        bytes: usize,
    },
    /// It is no picture, or none of a format that is read here.
    #[error("is not a PNG, JPEG or WebP file")]
    Format,
    /// There is too much on it.
    #[error("must have at most {PIXELS_MAX} pixels, not {width}x{height}")]
    Pixels {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// It begins like a picture, and does not go on like one.
    #[error("cannot be read as a {format} file: it is damaged or cut short")]
    Damaged {
        /// What it begins as.
        format: &'static str,
    },
}

/// The pixels of a PNG, JPEG or WebP file. Turned as its EXIF orientation says; transparency is dropped and grey becomes
/// colour, as PIL's `convert("RGB")` does; of an animation, the first picture.
///
/// # Errors
/// When it is no such file, or goes beyond a bound.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(DecodeError::Bytes { bytes: bytes.len() });
    }
    let (format, name) = match image::guess_format(bytes) {
        Ok(format @ ImageFormat::Png) => (format, "PNG"),
        Ok(format @ ImageFormat::Jpeg) => (format, "JPEG"),
        Ok(format @ ImageFormat::WebP) => (format, "WebP"),
        _ => return Err(DecodeError::Format),
    };
    let damaged = |_| DecodeError::Damaged { format: name };
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODING_BYTES_MAX);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(DecodeError::Pixels { width, height });
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = picture.dimensions();
    Ok(RgbImage::new(width, height, picture.into_raw()).expect("three bytes per pixel"))
}

/// Settles the size that is drawn, and brings the pictures that came along to it. They are stretched where the proportions
/// differ, as diffusers does. A size that the card does not allow is left to be refused.
#[must_use]
pub fn prepare(mut params: GenerateParams, card: &ModelCard) -> GenerateParams {
    params.settle_size(card);
    let size = (params.width.unwrap_or_default(), params.height.unwrap_or_default());
    if size_errors(size, &card.limits).is_empty() {
        for picture in &mut params.input_images {
            if (picture.width(), picture.height()) != size {
                *picture = Arc::new(resize(picture, size));
            }
        }
    }
    params
}

/// The picture in another size, by Lanczos' filter.
fn resize(picture: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let pixels = ImageBuffer::<Rgb<u8>, _>::from_raw(picture.width(), picture.height(), picture.pixels())
        .expect("three bytes per pixel");
    let resized = imageops::resize(&pixels, width, height, FilterType::Lanczos3);
    RgbImage::new(width, height, resized.into_raw()).expect("three bytes per pixel")
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::format::OutputFormat;
    use crate::domain::ids::ModelId;
    use crate::encode::encode;

    fn two_halves(width: u32, height: u32) -> RgbImage {
        let pixel = |x: u32| if x < width / 2 { [200, 40, 40] } else { [40, 40, 200] };
        let pixels = (0..height).flat_map(|_| (0..width).flat_map(pixel)).collect();
        RgbImage::new(width, height, pixels).expect("three bytes per pixel")
    }

    fn png(pixels: &[u8], (width, height): (u32, u32), color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).expect("encodes");
        bytes
    }

    #[test]
    fn every_format_that_is_written_is_read() {
        let picture = two_halves(48, 32);
        for format in OutputFormat::ALL {
            let read = decode(&encode(&picture, format).expect("encodes")).expect("decodes");
            assert_eq!((read.width(), read.height()), (48, 32), "{format}");
            let is_lossless = format != OutputFormat::Jpeg;
            assert!(!is_lossless || read == picture, "{format}");
        }
    }

    #[test]
    fn transparency_is_dropped_and_grey_becomes_colour() {
        let rgba = png(&[10, 20, 30, 0, 40, 50, 60, 128], (2, 1), ExtendedColorType::Rgba8);
        assert_eq!(decode(&rgba).expect("decodes").pixels(), [10, 20, 30, 40, 50, 60]);
        let grey = png(&[7, 200], (2, 1), ExtendedColorType::L8);
        assert_eq!(decode(&grey).expect("decodes").pixels(), [7, 7, 7, 200, 200, 200]);
        let deep = png(&[0x12, 0x12, 0xff, 0xff, 0, 0], (1, 1), ExtendedColorType::Rgb16);
        assert_eq!(decode(&deep).expect("decodes").pixels(), [0x12, 0xff, 0]);
    }

    #[test]
    fn a_camera_that_was_held_upright_is_heeded() {
        // TIFF, little endian: one entry, orientation 6, which is to be turned to the right.
        let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).expect("JPEG can hold it");
        let lying = two_halves(64, 32);
        encoder.write_image(lying.pixels(), 64, 32, ExtendedColorType::Rgb8).expect("encodes");
        let upright = decode(&bytes).expect("decodes");
        assert_eq!((upright.width(), upright.height()), (32, 64));
        let red_of = |row: usize| upright.pixels()[row * 32 * 3];
        assert!(red_of(4) > 150 && red_of(60) < 90, "the left half is at the top");
    }

    #[test]
    fn what_is_no_picture_is_told_from_what_is_damaged() {
        for bytes in [&b""[..], b"GIF89a", b"BM", b"<svg/>", b"\0\0\0\0"] {
            assert_eq!(decode(bytes), Err(DecodeError::Format), "{bytes:?}");
        }
        for (format, name) in [(OutputFormat::Png, "PNG"), (OutputFormat::Jpeg, "JPEG"), (OutputFormat::Webp, "WebP")] {
            let whole = encode(&two_halves(64, 64), format).expect("encodes");
            for length in [16, whole.len() / 2] {
                let error = decode(&whole[..length]);
                // A JPEG that breaks off in its pixels is shown grey from there on, as everywhere.
                let is_lenient = format == OutputFormat::Jpeg && length > 16;
                assert!(is_lenient || error == Err(DecodeError::Damaged { format: name }), "{format}: {error:?}");
            }
        }
    }

    #[test]
    fn large_files_and_many_pixels_are_refused_before_they_are_unpacked() {
        let large = vec![0; FILE_BYTES_MAX + 1];
        assert_eq!(decode(&large), Err(DecodeError::Bytes { bytes: FILE_BYTES_MAX + 1 }));
        // A header alone: whoever began to unpack it would find that the file is cut short.
        let mut bomb = png(&[0; 3], (1, 1), ExtendedColorType::Rgb8);
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&sum);
        assert_eq!(decode(&bomb), Err(DecodeError::Pixels { width: 65_535, height: 65_535 }));
    }

    #[test]
    fn a_picture_is_brought_to_the_size_that_is_drawn() {
        let card = card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev"));
        let prepared = |width: Option<u32>| {
            let input_images = vec![Arc::new(two_halves(130, 70))];
            prepare(GenerateParams { input_images, width, height: width, ..GenerateParams::default() }, &card)
        };
        let own = prepared(None);
        assert_eq!((own.width, own.height), (Some(128), Some(64)));
        let picture = &own.input_images[0];
        assert_eq!((picture.width(), picture.height()), (128, 64));
        assert_eq!(
            (&picture.pixels()[..3], &picture.pixels()[127 * 3..128 * 3]),
            (&[200, 40, 40][..], &[40, 40, 200][..])
        );
        let stretched = prepared(Some(96));
        assert_eq!((stretched.input_images[0].width(), stretched.input_images[0].height()), (96, 96));
        let refused = prepared(Some(u32::MAX));
        assert_eq!(refused.input_images[0].width(), 130, "left as it is");
    }
}
