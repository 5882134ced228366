//! Masks that are drawn as transparency, as OpenAI's image edits have them.

use image::{DynamicImage, RgbaImage};

use super::resize::PIXEL_BYTES;
use super::{DecodeError, check_bytes, plain, read};
use crate::domain::image::RgbImage;

/// Below this alpha a pixel counts as transparent.
const ALPHA_HALF: u8 = 128;

/// Decodes the mask of an image edit: white, which is repainted, where the file is transparent, and black elsewhere. A file without
/// transparency is a mask by its colors: it is returned as it is.
///
/// # Errors
/// As [`super::decode`].
pub fn decode_mask_of_alpha(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    check_bytes(bytes)?;
    let image = read(bytes)?;
    if !image.has_alpha() {
        return Ok(plain(image));
    }
    let image = image.into_rgba8();
    if !is_transparent(&image) {
        return Ok(plain(DynamicImage::ImageRgba8(image)));
    }
    let shade = |alpha: u8| if alpha < ALPHA_HALF { u8::MAX } else { 0 };
    let pixels = image.pixels().flat_map(|pixel| [shade(pixel.0[3]); PIXEL_BYTES]).collect();
    Ok(RgbImage::new(image.width(), image.height(), pixels).expect("three bytes per pixel"))
}

/// Whether a file is an image that is transparent somewhere, so that it can be its own mask.
#[must_use]
pub fn has_transparency(bytes: &[u8]) -> bool {
    let is_large = check_bytes(bytes).is_err();
    !is_large && read(bytes).is_ok_and(|image| image.has_alpha() && is_transparent(&image.into_rgba8()))
}

fn is_transparent(image: &RgbaImage) -> bool {
    image.pixels().any(|pixel| pixel.0[3] < ALPHA_HALF)
}

#[cfg(test)]
mod tests {
    use image::ExtendedColorType;

    use super::super::tests::png;
    use super::*;

    #[test]
    fn what_is_transparent_is_repainted() {
        let file = png(&[9, 9, 9, 0, 9, 9, 9, 127, 9, 9, 9, 128, 9, 9, 9, 255], (4, 1), ExtendedColorType::Rgba8);
        let mask = decode_mask_of_alpha(&file).expect("decodes");
        assert_eq!(mask.pixels(), [255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0]);
        assert!(has_transparency(&file));
        let gray = png(&[7, 0, 200, 255], (2, 1), ExtendedColorType::La8);
        assert_eq!(decode_mask_of_alpha(&gray).expect("decodes").pixels(), [255, 255, 255, 0, 0, 0]);
        let deep = png(&[1, 1, 2, 2, 3, 3, 0, 0], (1, 1), ExtendedColorType::Rgba16);
        assert!(has_transparency(&deep));
    }

    #[test]
    fn a_file_without_transparency_is_a_mask_by_its_colors() {
        let rgb = png(&[0, 0, 0, 255, 255, 255], (2, 1), ExtendedColorType::Rgb8);
        let opaque = png(&[0, 0, 0, 255, 255, 255, 255, 200], (2, 1), ExtendedColorType::Rgba8);
        for file in [&rgb, &opaque] {
            assert_eq!(decode_mask_of_alpha(file).expect("decodes").pixels(), [0, 0, 0, 255, 255, 255]);
            assert!(!has_transparency(file));
        }
        assert_eq!(decode_mask_of_alpha(b"GIF89a"), Err(DecodeError::Format));
        assert!(!has_transparency(b"GIF89a"), "and not an error");
    }
}
