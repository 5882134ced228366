//! Pixels to PNG, JPEG or WebP bytes.
//!
//! Owns the formats' settings, and where a file carries its provenance. Knows nothing of jobs or HTTP; encoding takes
//! milliseconds to hundreds of milliseconds of processor time, so callers keep it off the async threads.

use std::fmt::Write as _;
use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Field, In, Tag, Value};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageError, ImageResult};

use crate::domain::format::OutputFormat;
use crate::domain::image::RgbImage;
use crate::domain::provenance::{Provenance, SOFTWARE};

/// JPEG quality, 1 to 100. At 92 block edges are invisible on generated images; above it only the files grow.
pub const JPEG_QUALITY: u8 = 92;

/// Prefix of a `UserComment` in ASCII (Exif 2.32, 4.6.5).
const ASCII_COMMENT: &[u8] = b"ASCII\0\0\0";

/// Why an image could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("the image cannot be written as {format}: {cause}")]
pub struct EncodeError {
    /// The format.
    pub format: OutputFormat,
    /// What the encoder said; for the log.
    pub cause: String,
}

/// Encodes an image without metadata.
///
/// # Errors
/// When the format cannot hold it, for example a side beyond the format's limit.
pub fn encode(image: &RgbImage, format: OutputFormat) -> Result<Vec<u8>, EncodeError> {
    encode_with(image, format, None)
}

/// Encodes an image with its provenance as EXIF metadata, in every format: the program as `Software`, the rest as
/// `UserComment`, a JSON object.
///
/// # Errors
/// As [`encode`].
pub fn encode_with(
    image: &RgbImage,
    format: OutputFormat,
    provenance: Option<&Provenance>,
) -> Result<Vec<u8>, EncodeError> {
    let refused = |cause: String| EncodeError { format, cause };
    let exif = provenance.map(exif_of).transpose().map_err(|error| refused(error.to_string()))?;
    let mut bytes = Cursor::new(Vec::new());
    let outcome = match format {
        OutputFormat::Png => {
            let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
            write_with(encoder, image, exif)
        }
        OutputFormat::Jpeg => write_with(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY), image, exif),
        OutputFormat::Webp => write_with(WebPEncoder::new_lossless(&mut bytes), image, exif),
    };
    outcome.map_err(|error| refused(error.to_string()))?;
    Ok(bytes.into_inner())
}

fn write_with(mut encoder: impl ImageEncoder, image: &RgbImage, exif: Option<Vec<u8>>) -> ImageResult<()> {
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).map_err(ImageError::Unsupported)?;
    }
    encoder.write_image(image.pixels(), image.width(), image.height(), ExtendedColorType::Rgb8)
}

fn exif_of(provenance: &Provenance) -> Result<Vec<u8>, exif::Error> {
    let json = serde_json::to_string(provenance).expect("plain data");
    let comment = [ASCII_COMMENT, in_ascii(&json).as_bytes()].concat();
    let field = |tag, value| Field { tag, ifd_num: In::PRIMARY, value };
    let software = field(Tag::Software, Value::Ascii(vec![SOFTWARE.as_bytes().to_vec()]));
    let comment = field(Tag::UserComment, Value::Undefined(comment, 0));
    let mut writer = Writer::new();
    writer.push_field(&software);
    writer.push_field(&comment);
    let mut exif = Cursor::new(Vec::new());
    writer.write(&mut exif, true)?;
    Ok(exif.into_inner())
}

/// Escapes every non-ASCII character in JSON, since the comment is declared as ASCII.
fn in_ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("writing to a string cannot fail");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ModelId;
    use crate::domain::precision::Precision;
    use crate::domain::provenance::AdapterProvenance;

    fn gradient(width: u32, height: u32) -> RgbImage {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x ^ y) as u8]));
        RgbImage::new(width, height, pixels.collect()).expect("three bytes per pixel")
    }

    #[test]
    fn lossless_formats_give_the_same_pixels_back() {
        let image = gradient(48, 32);
        for format in [OutputFormat::Png, OutputFormat::Webp] {
            let bytes = encode(&image, format).expect("encodes");
            let decoded = image::load_from_memory(&bytes).expect("decodes").to_rgb8();
            assert_eq!((decoded.width(), decoded.height()), (48, 32));
            assert_eq!(decoded.as_raw(), image.pixels(), "{format}");
        }
    }

    fn provenance() -> Provenance {
        Provenance {
            model: ModelId::new("somebody/mödel-\u{1f98a}"),
            revision: Some("0123456789abcdef0123456789abcdef01234567".into()),
            seed: (1 << 53) - 1,
            steps: 28,
            guidance: 3.5,
            width: 48,
            height: 32,
            strength: Some(0.6),
            images: [("control", 2), ("input", 1)].into(),
            cache_threshold: Some(0.08),
            loras: vec![AdapterProvenance { sha256: "a5".repeat(32), scale: -0.5 }],
            precision: Some(Precision::Fp8),
        }
    }

    #[test]
    fn every_format_carries_provenance() {
        let image = gradient(48, 32);
        for format in OutputFormat::ALL {
            let bytes = encode_with(&image, format, Some(&provenance())).expect("encodes");
            assert_eq!(bytes, encode_with(&image, format, Some(&provenance())).expect("encodes"), "the same file");
            let read = exif::Reader::new().read_from_container(&mut Cursor::new(&bytes)).expect("EXIF");
            assert_eq!(read.fields().count(), 2, "{format}: no other fields");
            let field = |tag| &read.get_field(tag, In::PRIMARY).expect("the field").value;
            let Value::Ascii(software) = field(Tag::Software) else { panic!("text") };
            assert_eq!(software[0], SOFTWARE.as_bytes());
            let Value::Undefined(comment, _) = field(Tag::UserComment) else { panic!("a comment") };
            let json = comment.strip_prefix(ASCII_COMMENT).expect("declared as ASCII");
            assert!(json.is_ascii());
            let told: serde_json::Value = serde_json::from_slice(json).expect("JSON");
            let expected = serde_json::json!({
                "model": "somebody/mödel-\u{1f98a}", "revision": "0123456789abcdef0123456789abcdef01234567",
                "seed": 9_007_199_254_740_991_u64, "steps": 28, "guidance": 3.5, "width": 48, "height": 32,
                "strength": 0.6, "images": {"control": 2, "input": 1}, "cache_threshold": 0.08,
                "loras": [{"sha256": "a5".repeat(32), "scale": -0.5}], "precision": "fp8",
            });
            assert_eq!(told, expected, "{format}");
            let pixels = |bytes: &[u8]| image::load_from_memory(bytes).expect("decodes").to_rgb8();
            assert_eq!(pixels(&bytes), pixels(&encode(&image, format).expect("encodes")), "{format}");
        }
    }

    #[test]
    fn a_file_without_provenance_has_no_metadata() {
        for format in OutputFormat::ALL {
            let bytes = encode(&gradient(16, 16), format).expect("encodes");
            assert!(exif::Reader::new().read_from_container(&mut Cursor::new(&bytes)).is_err(), "{format}");
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
        let image = gradient(16, 16);
        for (format, start) in [
            (OutputFormat::Png, &b"\x89PNG"[..]),
            (OutputFormat::Jpeg, &b"\xff\xd8\xff"[..]),
            (OutputFormat::Webp, &b"RIFF"[..]),
        ] {
            assert!(encode(&image, format).expect("encodes").starts_with(start), "{format}");
        }
    }
}
