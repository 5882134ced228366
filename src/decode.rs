//! Decodes clients' image files to pixels.
//!
//! Owns the bounds of what is decoded, and the preparation of an input image: the output size, in plain RGB. Knows
//! nothing of jobs or HTTP; decoding takes up to some hundred milliseconds of processor time, so callers keep it off
//! the async threads.

mod header;
mod orientation;

use std::io::Cursor;
use std::sync::Arc;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageBuffer, ImageDecoder as _, ImageFormat, ImageReader, Limits, Rgb};

use crate::domain::conditioning::GivenImage;
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{GenerateParams, size_errors};

pub use header::{ImageHeader, inspect};

/// Largest file, in bytes: more than a phone's camera writes.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum pixels of an image, before it is resized.
pub const PIXELS_MAX: u64 = 32_000_000;
/// Maximum pixels of one side. The area alone would allow an image millions of pixels wide and one high, but the memory
/// for resize grows with the sides as well.
pub const SIDE_MAX: u32 = 16_384;
/// Memory per pixel between the two passes of a resize: four channels of 32 bits.
const RESIZING_PIXEL_BYTES: u64 = 16;
/// Maximum memory between the two passes of a resize that starts with the height, as usual. Beyond it the width comes
/// first, and then the memory is at most that of the root of [`PIXELS_MAX`] times the output side.
const RESIZING_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Maximum memory for decoding one image: [`PIXELS_MAX`] with four channels of 16 bits.
const DECODING_BYTES_MAX: u64 = 8 * PIXELS_MAX;

/// What is wrong with an image file, for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The file is too large.
    #[error("must be a file of at most {FILE_BYTES_MAX} bytes, not {bytes}")]
    Bytes {
        /// Its size.
        bytes: usize,
    },
    /// It is not an image of a supported format.
    #[error("is not a PNG, JPEG or WebP file")]
    Format,
    /// It has too many pixels.
    #[error("must have at most {PIXELS_MAX} pixels, not {width}x{height}")]
    Pixels {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// It is too wide or too high.
    #[error("must be at most {SIDE_MAX} pixels wide and high, not {width}x{height}")]
    Sides {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// It begins like an image, but is not a valid one.
    #[error("cannot be read as a {format} file: it is damaged or cut short")]
    Damaged {
        /// The format it begins as.
        format: &'static str,
    },
}

/// Decodes a PNG, JPEG or WebP file. The EXIF orientation is applied; transparency is dropped and gray becomes color,
/// as PIL's `convert("RGB")` does; of an animation, the first frame is used.
///
/// # Errors
/// When it is not such a file, or exceeds a bound.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(DecodeError::Bytes { bytes: bytes.len() });
    }
    decode_stored(bytes)
}

/// [`decode`] for a file that this program has written: it may be larger than those of clients.
///
/// # Errors
/// As there, but for the size of the file.
pub fn decode_stored(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
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
    if width.max(height) > SIDE_MAX {
        return Err(DecodeError::Sides { width, height });
    }
    // Parsed here, because the decoders accept it only in the standard's form.
    let orientation = orientation::of_exif(&decoder.exif_metadata().map_err(damaged)?.unwrap_or_default());
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    let (width, height) = image.dimensions();
    Ok(RgbImage::new(width, height, image.into_raw()).expect("three bytes per pixel"))
}

/// Settles the output size, and resizes the input images to it. They are stretched if the proportions differ, as
/// diffusers does. A size that the card does not allow is left for validation to refuse.
#[must_use]
pub fn prepare(mut params: GenerateParams, card: &ModelCard) -> GenerateParams {
    params.settle_size(card);
    let size = (params.width.unwrap_or_default(), params.height.unwrap_or_default());
    if size_errors(size, &card.limits).is_empty() {
        for GivenImage { image, .. } in &mut params.images {
            if (image.width(), image.height()) != size {
                *image = Arc::new(resize(image, size));
            }
        }
    }
    params
}

/// Resizes an image with the Lanczos filter.
fn resize(image: &RgbImage, size: (u32, u32)) -> RgbImage {
    let pixels = ImageBuffer::<Rgb<u8>, _>::from_raw(image.width(), image.height(), image.pixels())
        .expect("three bytes per pixel");
    let resized = if is_width_first((image.width(), image.height()), size) {
        // The library always starts with the height, so the image is rotated.
        let lying = imageops::rotate90(&pixels);
        imageops::rotate270(&imageops::resize(&lying, size.1, size.0, FilterType::Lanczos3))
    } else {
        imageops::resize(&pixels, size.0, size.1, FilterType::Lanczos3)
    };
    RgbImage::new(size.0, size.1, resized.into_raw()).expect("three bytes per pixel")
}

/// Bytes between the passes of a resize that starts with the height.
fn between_passes((width, _): (u32, u32), (_, new_height): (u32, u32)) -> u64 {
    RESIZING_PIXEL_BYTES * u64::from(width) * u64::from(new_height)
}

/// Whether a resize has to start with the width. While memory suffices it starts with the height, so that images of
/// usual proportions keep the same bits.
fn is_width_first(from: (u32, u32), to: (u32, u32)) -> bool {
    let height_first = between_passes(from, to);
    height_first > RESIZING_BYTES_MAX && height_first > between_passes((from.1, from.0), (to.1, to.0))
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::conditioning::ImageRole;
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
        let image = two_halves(48, 32);
        for format in OutputFormat::ALL {
            let read = decode(&encode(&image, format).expect("encodes")).expect("decodes");
            assert_eq!((read.width(), read.height()), (48, 32), "{format}");
            let is_lossless = format != OutputFormat::Jpeg;
            assert!(!is_lossless || read == image, "{format}");
        }
    }

    #[test]
    fn transparency_is_dropped_and_gray_becomes_color() {
        let rgba = png(&[10, 20, 30, 0, 40, 50, 60, 128], (2, 1), ExtendedColorType::Rgba8);
        assert_eq!(decode(&rgba).expect("decodes").pixels(), [10, 20, 30, 40, 50, 60]);
        let gray = png(&[7, 200], (2, 1), ExtendedColorType::L8);
        assert_eq!(decode(&gray).expect("decodes").pixels(), [7, 7, 7, 200, 200, 200]);
        let deep = png(&[0x12, 0x12, 0xff, 0xff, 0, 0], (1, 1), ExtendedColorType::Rgb16);
        assert_eq!(decode(&deep).expect("decodes").pixels(), [0x12, 0xff, 0]);
    }

    #[test]
    fn the_exif_orientation_is_applied() {
        // TIFF, little endian: one entry, orientation 6 (rotate right).
        let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        let mut as_long = exif.clone();
        as_long[12] = 4;
        for exif in [exif, as_long] {
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
    }

    #[test]
    fn other_files_are_distinguished_from_damaged_images() {
        for bytes in [&b""[..], b"GIF89a", b"BM", b"<svg/>", b"\0\0\0\0"] {
            assert_eq!(decode(bytes), Err(DecodeError::Format), "{bytes:?}");
        }
        for (format, name) in [(OutputFormat::Png, "PNG"), (OutputFormat::Jpeg, "JPEG"), (OutputFormat::Webp, "WebP")] {
            let complete = encode(&two_halves(64, 64), format).expect("encodes");
            for length in [16, complete.len() / 2] {
                let error = decode(&complete[..length]);
                // A JPEG that ends within its pixels decodes as gray from there on, as everywhere.
                let is_lenient = format == OutputFormat::Jpeg && length > 16;
                assert!(is_lenient || error == Err(DecodeError::Damaged { format: name }), "{format}: {error:?}");
            }
        }
    }

    #[test]
    fn large_files_and_many_pixels_are_refused_before_decoding() {
        let large = vec![0; FILE_BYTES_MAX + 1];
        assert_eq!(decode(&large), Err(DecodeError::Bytes { bytes: FILE_BYTES_MAX + 1 }));
        // Only a header: decoding it would report a truncated file.
        let mut bomb = png(&[0; 3], (1, 1), ExtendedColorType::Rgb8);
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&sum);
        assert_eq!(decode(&bomb), Err(DecodeError::Pixels { width: 65_535, height: 65_535 }));
    }

    #[test]
    fn long_thin_images_are_refused_before_decoding() {
        let headers = |width: u32, height: u32| {
            let mut bytes = png(&[0; 3], (1, 1), ExtendedColorType::Rgb8);
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            let sum = crc32fast::hash(&bytes[12..29]).to_be_bytes();
            bytes[29..33].copy_from_slice(&sum);
            bytes
        };
        for (width, height) in
            [(32_000_000, 1), (1, 32_000_000), (4_000_000, 8), (8, 4_000_000), (16_385, 1), (1, 16_385)]
        {
            assert_eq!(decode(&headers(width, height)), Err(DecodeError::Sides { width, height }));
        }
        let wide = two_halves(16_385, 1);
        let mut jpeg = Vec::new();
        JpegEncoder::new(&mut jpeg).write_image(wide.pixels(), 16_385, 1, ExtendedColorType::Rgb8).expect("encodes");
        assert_eq!(decode(&jpeg), Err(DecodeError::Sides { width: 16_385, height: 1 }));
    }

    #[test]
    fn the_memory_of_a_resize_is_bounded_for_all_proportions() {
        for known in crate::catalog::known_models() {
            let limits = known.card.limits;
            let sides = |min: u32, max: u32| [min, 512, 1024, max];
            for (width, height) in [1, 1953, 5656, 8192, SIDE_MAX].into_iter().flat_map(|side| {
                let other = u32::try_from(PIXELS_MAX / u64::from(side)).expect("few").min(SIDE_MAX);
                [(side, other), (other, side)]
            }) {
                for to in sides(limits.width_min, limits.width_max)
                    .into_iter()
                    .flat_map(|to| sides(limits.height_min, limits.height_max).map(|other| (to, other)))
                {
                    let from = (width, height);
                    let bytes = if is_width_first(from, to) {
                        between_passes((height, width), (to.1, to.0))
                    } else {
                        between_passes(from, to)
                    };
                    assert!(bytes <= RESIZING_BYTES_MAX, "{from:?} to {to:?}: {bytes}");
                }
            }
        }
    }

    #[test]
    fn the_longest_images_of_each_format_are_resized() {
        let longest = |format| if format == OutputFormat::Webp { 16_383 } else { SIDE_MAX };
        for format in OutputFormat::ALL {
            for turned in [false, true] {
                let side = longest(format);
                let (width, height) = if turned { (3, side) } else { (side, 3) };
                let image = decode(&encode(&two_halves(width, height), format).expect("encodes")).expect("decodes");
                let resized = resize(&image, (2048, 2048));
                assert_eq!((resized.width(), resized.height()), (2048, 2048), "{format}");
                let red_of = |x: usize, y: usize| resized.pixels()[(y * 2048 + x) * 3];
                assert!(red_of(8, 1000) > 150 && red_of(2040, 1000) < 90, "{format}: left is left");
            }
        }
    }

    #[test]
    fn the_order_of_the_passes_is_invisible() {
        let image = two_halves(16_384, 4);
        let to = (256, 2048);
        assert!(is_width_first((image.width(), image.height()), to));
        let pixels = ImageBuffer::<Rgb<u8>, _>::from_raw(16_384, 4, image.pixels()).expect("three bytes per pixel");
        let height_first = imageops::resize(&pixels, to.0, to.1, FilterType::Lanczos3);
        let differs = |(mine, other): (&u8, &u8)| mine.abs_diff(*other) > 1;
        assert!(!resize(&image, to).pixels().iter().zip(height_first.as_raw()).any(differs));
    }

    #[test]
    fn an_image_is_resized_to_the_output_size() {
        let card = card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev"));
        let prepared = |width: Option<u32>| {
            let images = vec![GivenImage::new("image", ImageRole::Input, Arc::new(two_halves(130, 70)))];
            prepare(GenerateParams { images, width, height: width, ..GenerateParams::default() }, &card)
        };
        let own = prepared(None);
        assert_eq!((own.width, own.height), (Some(128), Some(64)));
        let image = &own.images[0].image;
        assert_eq!((image.width(), image.height()), (128, 64));
        assert_eq!((&image.pixels()[..3], &image.pixels()[127 * 3..128 * 3]), (&[200, 40, 40][..], &[40, 40, 200][..]));
        let stretched = prepared(Some(96));
        assert_eq!((stretched.images[0].image.width(), stretched.images[0].image.height()), (96, 96));
        let refused = prepared(Some(u32::MAX));
        assert_eq!(refused.images[0].image.width(), 130, "left unchanged");
    }
}
