//! Decodes clients' image files to pixels.
//!
//! Owns the bounds of what is decoded, and the preparation of a request's images: each in the size that its role has, in plain
//! RGB, edges drawn, the region around a mask cut out. Knows nothing of jobs or HTTP; decoding takes up to some hundred
//! milliseconds of processor time, so callers keep it off the async threads.

mod canny;
mod header;
mod orientation;
mod region;
mod resize;
mod transparency;

use std::sync::Arc;

use image::DynamicImage;
use image::imageops::FilterType;

pub use region::put_back;
pub use transparency::{decode_mask_of_alpha, has_transparency};

use crate::domain::conditioning::{GivenImage, ImageRole, Preprocess, kontext_size};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::spec::{GenerateParams, image_count_errors, size_errors};

pub use header::{ImageHeader, inspect};
use header::{Opened, open};

/// Largest file, in bytes: more than a phone's camera writes.
pub const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum pixels of an image, before it is resized.
pub const PIXELS_MAX: u64 = 32_000_000;
/// Maximum pixels of one side. The area alone would allow an image millions of pixels wide and one high, but the memory
/// for resize grows with the sides as well.
pub const SIDE_MAX: u32 = 16_384;
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
    check_bytes(bytes)?;
    decode_stored(bytes)
}

/// [`decode`] for a file that this program has written: it may be larger than those of clients.
///
/// # Errors
/// As there, but for the size of the file.
pub fn decode_stored(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    read(bytes).map(plain)
}

fn check_bytes(bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(DecodeError::Bytes { bytes: bytes.len() });
    }
    Ok(())
}

/// The image of a file, upright, with the channels that the file has.
fn read(bytes: &[u8]) -> Result<DynamicImage, DecodeError> {
    let Opened { decoder, format, orientation } = open(bytes)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|_| Opened::<()>::damaged(format))?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// The colors of an image alone.
fn plain(image: DynamicImage) -> RgbImage {
    let image = image.into_rgb8();
    let (width, height) = image.dimensions();
    RgbImage::new(width, height, image.into_raw()).expect("three bytes per pixel")
}

/// Settles the output size, and prepares each image for its role. A prepared request is not changed by preparing it again; one with
/// a size or a number of images that the card does not allow is left as it is, for validation to refuse.
///
/// Input, mask and control images get the output size by Lanczos's filter, stretched if the proportions differ, as diffusers
/// does. With `mask_padding`, input and mask are the region around the mask instead, and [`put_back`] puts the result back. A
/// reference gets the one of [`kontext_size`]'s sizes that is nearest to its proportions. A style image becomes the image
/// encoder's square by a bicubic filter: within one level of PIL's, which rounds between its two passes, so about a fifth of the
/// values differ by that one. [`Preprocess::Canny`] is done here, in the output size; depth is left to the engine.
#[must_use]
pub fn prepare(mut params: GenerateParams, card: &ModelCard) -> GenerateParams {
    params.settle_size(card);
    let size = (params.width.unwrap_or_default(), params.height.unwrap_or_default());
    // What is refused is not worth the work and the memory.
    if !size_errors(size, &card.limits).is_empty() || !image_count_errors(&params, card).is_empty() {
        return params;
    }
    if let Some(padding) = params.mask_padding.filter(|_| params.overlay.is_none()) {
        region::cut_out(&mut params, padding, size);
    }
    for given in &mut params.images {
        fit(given, card, size);
    }
    params
}

/// Prepares an image for its role.
fn fit(given: &mut GivenImage, card: &ModelCard, output: (u32, u32)) {
    let own = (given.image.width(), given.image.height());
    let (size, filter) = match (given.role, card.attached.style) {
        (ImageRole::Input | ImageRole::Mask | ImageRole::Control, _) => (output, FilterType::Lanczos3),
        (ImageRole::Reference, _) => (kontext_size(own), FilterType::Lanczos3),
        (ImageRole::Style, Some(style)) => ((style.side, style.side), FilterType::CatmullRom),
        (ImageRole::Style, None) => return,
    };
    if own != size {
        given.image = Arc::new(resize::resize(&given.image, size, filter));
    }
    if given.role == ImageRole::Control && given.options.preprocess == Some(Preprocess::Canny) {
        given.image = Arc::new(canny::edges(&given.image));
        given.options.preprocess = None;
    }
}

#[cfg(test)]
mod tests;
