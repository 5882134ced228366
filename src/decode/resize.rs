//! Resizes and crops pixels, with bounded memory.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Rgb};

use crate::domain::image::RgbImage;
use crate::domain::overlay::Region;

/// Bytes of a pixel.
pub(super) const PIXEL_BYTES: usize = 3;
/// Memory per pixel between the two passes of a resize: four channels of 32 bits.
const RESIZING_PIXEL_BYTES: u64 = 16;
/// Maximum memory between the two passes of a resize that starts with the height, as usual. Beyond it the width comes
/// first, and then the memory is at most that of the root of [`super::PIXELS_MAX`] times the output side.
const RESIZING_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Resizes an image.
pub(super) fn resize(image: &RgbImage, size: (u32, u32), filter: FilterType) -> RgbImage {
    let pixels = ImageBuffer::<Rgb<u8>, _>::from_raw(image.width(), image.height(), image.pixels())
        .expect("three bytes per pixel");
    let resized = if is_width_first((image.width(), image.height()), size) {
        // The library always starts with the height, so the image is rotated.
        let lying = imageops::rotate90(&pixels);
        imageops::rotate270(&imageops::resize(&lying, size.1, size.0, filter))
    } else {
        imageops::resize(&pixels, size.0, size.1, filter)
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

/// A part of an image, which must lie within it.
pub(super) fn crop(image: &RgbImage, region: &Region) -> RgbImage {
    let row_bytes = (image.width() as usize * PIXEL_BYTES).max(1);
    let (from, to) = (region.x as usize * PIXEL_BYTES, (region.x + region.width) as usize * PIXEL_BYTES);
    let rows = image.pixels().chunks_exact(row_bytes).skip(region.y as usize).take(region.height as usize);
    let mut pixels = Vec::with_capacity((to - from) * region.height as usize);
    for row in rows {
        pixels.extend_from_slice(&row[from..to]);
    }
    RgbImage::new(region.width, region.height, pixels).expect("the region lies within the image")
}

/// Stretches a mask to the size of the image that it belongs to, between its nearest four pixels. Unlike [`resize`], it takes no
/// memory beside the result, and that may have as many pixels as a client's image.
pub(super) fn stretch(mask: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let pixels = mask.pixels();
    let row_bytes = mask.width() as usize * PIXEL_BYTES;
    let columns: Vec<Between> = (0..width).map(|index| Between::of(index, mask.width(), width)).collect();
    let mut stretched = Vec::with_capacity(width as usize * height as usize * PIXEL_BYTES);
    for row in (0..height).map(|index| Between::of(index, mask.height(), height)) {
        let upper = &pixels[row.first * row_bytes..][..row_bytes];
        let lower = &pixels[row.second * row_bytes..][..row_bytes];
        for column in &columns {
            for channel in 0..PIXEL_BYTES {
                let value = |bytes: &[u8]| {
                    column.value(
                        bytes[column.first * PIXEL_BYTES + channel],
                        bytes[column.second * PIXEL_BYTES + channel],
                    )
                };
                let sum = value(upper) * (SHARES - row.share) + value(lower) * row.share;
                stretched.push(((sum + SHARES * SHARES / 2) / (SHARES * SHARES)) as u8);
            }
        }
    }
    RgbImage::new(width, height, stretched).expect("three bytes per pixel")
}

/// Parts into which the way from one pixel to the next is divided.
const SHARES: u32 = 256;

/// Where the centre of a new pixel lies: between two old ones.
struct Between {
    first: usize,
    second: usize,
    /// How much the second one counts, of [`SHARES`].
    share: u32,
}

impl Between {
    fn of(index: u32, from: u32, to: u32) -> Self {
        let half = u64::from(SHARES) / 2;
        let centre = (2 * u64::from(index) + 1) * u64::from(from) * half / u64::from(to);
        let position = centre.saturating_sub(half);
        let last = from.saturating_sub(1) as usize;
        let first = ((position / u64::from(SHARES)) as usize).min(last);
        Self { first, second: (first + 1).min(last), share: (position % u64::from(SHARES)) as u32 }
    }

    /// The value between those of the two pixels, times [`SHARES`].
    fn value(&self, first: u8, second: u8) -> u32 {
        u32::from(first) * (SHARES - self.share) + u32::from(second) * self.share
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::two_halves;
    use super::super::{PIXELS_MAX, SIDE_MAX, decode};
    use super::*;
    use crate::domain::format::OutputFormat;
    use crate::encode::encode;

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
                    // Also back again: the region around a mask may be as large as a client's image.
                    for (from, to) in [((width, height), to), (to, (width, height))] {
                        let bytes = if is_width_first(from, to) {
                            between_passes((from.1, from.0), (to.1, to.0))
                        } else {
                            between_passes(from, to)
                        };
                        assert!(bytes <= RESIZING_BYTES_MAX, "{from:?} to {to:?}: {bytes}");
                    }
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
                let resized = resize(&image, (2048, 2048), FilterType::Lanczos3);
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
        let width_first = resize(&image, to, FilterType::Lanczos3);
        assert!(!width_first.pixels().iter().zip(height_first.as_raw()).any(differs));
    }

    #[test]
    fn a_part_is_cropped_in_place() {
        let image = RgbImage::new(4, 3, (0..36).collect()).expect("three bytes per pixel");
        let part = crop(&image, &Region { x: 1, y: 2, width: 2, height: 1 });
        assert_eq!((part.width(), part.height(), part.pixels()), (2, 1, &[27, 28, 29, 30, 31, 32][..]));
        let all = crop(&image, &Region { x: 0, y: 0, width: 4, height: 3 });
        assert!(all == image);
    }

    #[test]
    fn a_mask_is_stretched_between_its_pixels() {
        let mask = RgbImage::new(2, 1, vec![0, 0, 0, 255, 255, 255]).expect("three bytes per pixel");
        let reds = |mask: &RgbImage| mask.pixels().iter().step_by(3).copied().collect::<Vec<u8>>();
        let wide = stretch(&mask, (4, 2));
        assert_eq!((wide.width(), wide.height()), (4, 2));
        assert_eq!(reds(&wide), [0, 64, 191, 255, 0, 64, 191, 255]);
        assert!(stretch(&wide, (4, 2)) == wide, "its own size");
        assert_eq!(reds(&stretch(&mask, (1, 1))), [128]);
        let dot = RgbImage::new(1, 1, vec![7; 3]).expect("three bytes per pixel");
        assert!(stretch(&dot, (16_384, 3)).pixels().iter().all(|byte| *byte == 7));
    }
}
