//! Cuts out the region around a mask, so that all pixels of the output are spent on it, and puts the result back.
//!
//! Source: `get_crop_region`, `_resize_and_fill` and `apply_overlay` of diffusers' `VaeImageProcessor`, which its inpainting
//! pipelines use for `padding_mask_crop`. Where a region does not have the output's proportions, it is put back from exactly where
//! it was; diffusers shifts it by up to a pixel then.

use std::sync::Arc;

use image::imageops::FilterType;

use super::resize::{PIXEL_BYTES, crop, resize, stretch};
use crate::domain::conditioning::ImageRole;
use crate::domain::image::RgbImage;
use crate::domain::overlay::{Overlay, Region};
use crate::domain::spec::GenerateParams;

/// Replaces the input image and its mask by the region around the mask, in the output size, and keeps the whole images as the
/// overlay. Nothing changes where the mask has nothing white; validation refuses that.
pub(super) fn cut_out(params: &mut GenerateParams, padding: u32, output: (u32, u32)) {
    let (Some(input), Some(mask)) = (params.image(ImageRole::Input), params.image(ImageRole::Mask)) else { return };
    let (image, mask) = (Arc::clone(&input.image), Arc::clone(&mask.image));
    let size = (image.width(), image.height());
    let mask = if (mask.width(), mask.height()) == size { mask } else { Arc::new(stretch(&mask, size)) };
    let Some(region) = around(&mask, padding, output) else { return };
    for given in &mut params.images {
        let whole = match given.role {
            ImageRole::Input => &image,
            ImageRole::Mask => &mask,
            ImageRole::Control | ImageRole::Reference | ImageRole::Style => continue,
        };
        given.image = Arc::new(enlarged(whole, &region, output));
    }
    params.overlay = Some(Overlay { image, mask, region, padding });
}

/// Puts a generated region back into the whole image: where the mask is white, and in part where it is gray. The result has the
/// size of the whole.
#[must_use]
pub fn put_back(overlay: &Overlay, generated: &RgbImage) -> RgbImage {
    let Overlay { image, mask, region, padding: _ } = overlay;
    let part = crop(generated, &place_in((generated.width(), generated.height()), region));
    let part = resize(&part, (region.width, region.height), FilterType::Lanczos3);
    let row_bytes = image.width() as usize * PIXEL_BYTES;
    let mut pixels = image.pixels().to_vec();
    for (row, new) in part.pixels().chunks_exact(region.width as usize * PIXEL_BYTES).enumerate() {
        let start = (region.y as usize + row) * row_bytes + region.x as usize * PIXEL_BYTES;
        let place = start..start + new.len();
        let pixels = pixels[place.clone()].chunks_exact_mut(PIXEL_BYTES);
        let pairs = pixels.zip(new.chunks_exact(PIXEL_BYTES)).zip(mask.pixels()[place].chunks_exact(PIXEL_BYTES));
        for ((pixel, new), mask) in pairs {
            let share = luma(mask);
            for (old, new) in pixel.iter_mut().zip(new) {
                *old = ((u32::from(*old) * (255 - share) + u32::from(*new) * share + 127) / 255) as u8;
            }
        }
    }
    RgbImage::new(image.width(), image.height(), pixels).expect("as many pixels as before")
}

/// The luma of a pixel, from 0 to 255, as PIL computes it.
fn luma(pixel: &[u8]) -> u32 {
    let [red, green, blue] = [0, 1, 2].map(|channel| u32::from(pixel[channel]));
    (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16
}

/// The smallest region with all that is not black in a mask and `padding` pixels around it, widened to the proportions of the
/// output as far as the image goes. `None`: the mask is black.
fn around(mask: &RgbImage, padding: u32, output: (u32, u32)) -> Option<Region> {
    let (columns, rows) = extent(mask)?;
    let (width, height) = (i64::from(mask.width()), i64::from(mask.height()));
    let padding = i64::from(padding);
    let padded = |(first, last): (i64, i64), end: i64| ((first - padding).max(0), (last + padding).min(end));
    let (columns, rows) = (padded(columns, width), padded(rows, height));
    let (across, down) = ((columns.1 - columns.0) as f64, (rows.1 - rows.0) as f64);
    let ratio = f64::from(output.0) / f64::from(output.1);
    let (columns, rows) = if across / down > ratio {
        (columns, widened(rows, across / ratio, height))
    } else {
        (widened(columns, down * ratio, width), rows)
    };
    let [x, y, right, bottom] = [columns.0, rows.0, columns.1, rows.1].map(|side| side as u32);
    Some(Region { x, y, width: right - x, height: bottom - y })
}

/// The first column and row with something that is not black, and those behind the last.
fn extent(mask: &RgbImage) -> Option<((i64, i64), (i64, i64))> {
    let row_bytes = (mask.width() as usize * PIXEL_BYTES).max(1);
    let mut found: Option<((usize, usize), (usize, usize))> = None;
    for (y, row) in mask.pixels().chunks_exact(row_bytes).enumerate() {
        let is_white = |byte: &u8| *byte != 0;
        let (Some(first), Some(last)) = (row.iter().position(is_white), row.iter().rposition(is_white)) else {
            continue;
        };
        let (first, last) = (first / PIXEL_BYTES, last / PIXEL_BYTES + 1);
        let ((left, right), (top, _)) = found.unwrap_or(((first, last), (y, y)));
        found = Some(((left.min(first), right.max(last)), (top, y + 1)));
    }
    let range = |(first, last): (usize, usize)| (first as i64, last as i64);
    found.map(|(columns, rows)| (range(columns), range(rows)))
}

/// A range made as long as `length` about its middle, moved into `0..end`, and cut there.
fn widened((first, last): (i64, i64), length: f64, end: i64) -> (i64, i64) {
    let more = (length - (last - first) as f64) as i64;
    let (mut first, mut last) = (first - more / 2, last + more - more / 2);
    if last > end {
        (first, last) = (first - (last - end), end);
    }
    if first < 0 {
        (first, last) = (0, last - first);
    }
    (first, last.min(end))
}

/// Where a region's pixels are in the output: as large as its proportions allow, in the middle.
fn place_in(output: (u32, u32), region: &Region) -> Region {
    let (width, height) = (u64::from(output.0), u64::from(output.1));
    let (across, down) = (u64::from(region.width), u64::from(region.height));
    let is_wider = width * down < across * height;
    let (fit_width, fit_height) = if is_wider {
        (output.0, (down * width / across).max(1) as u32)
    } else {
        ((across * height / down).max(1) as u32, output.1)
    };
    let start = |whole: u32, part: u32| whole / 2 - part / 2;
    Region { x: start(output.0, fit_width), y: start(output.1, fit_height), width: fit_width, height: fit_height }
}

/// A region in the output size, in its own proportions, with its borders continued where it has others.
fn enlarged(whole: &RgbImage, region: &Region, output: (u32, u32)) -> RgbImage {
    let place = place_in(output, region);
    let content = resize(&crop(whole, region), (place.width, place.height), FilterType::Lanczos3);
    if (place.width, place.height) == output {
        return content;
    }
    let pixel = |(x, y): (usize, usize)| {
        let start = (y * place.width as usize + x) * PIXEL_BYTES;
        &content.pixels()[start..start + PIXEL_BYTES]
    };
    let columns: Vec<_> = (0..output.0).map(|x| source(x, place.x, place.width)).collect();
    let mut pixels = Vec::with_capacity(output.0 as usize * output.1 as usize * PIXEL_BYTES);
    for (y, next_y) in (0..output.1).map(|y| source(y, place.y, place.height)) {
        for (x, next_x) in &columns {
            let border = pixel((*x, y)).iter().zip(pixel((*next_x, next_y)));
            pixels.extend(border.map(|(own, next)| beyond(*own, *next)));
        }
    }
    RgbImage::new(output.0, output.1, pixels).expect("three bytes per pixel")
}

/// The pixel of the content at a position of the output, and the one behind it; both the same inside the content.
fn source(position: u32, start: u32, length: u32) -> (usize, usize) {
    let last = length - 1;
    let (own, next) = match position.checked_sub(start) {
        None => (0, last.min(1)),
        Some(inside) if inside <= last => (inside, inside),
        Some(_) => (last, last.saturating_sub(1)),
    };
    (own as usize, next as usize)
}

/// How a border continues, as PIL's bicubic filter sees it from there: the pixel, and an eighth of what it differs from the next.
fn beyond(own: u8, next: u8) -> u8 {
    let eighths = 9 * i32::from(own) - i32::from(next);
    ((eighths + 4).max(0) / 8).min(255) as u8
}

#[cfg(test)]
mod tests;
