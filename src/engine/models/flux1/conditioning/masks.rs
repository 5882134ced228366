//! Masks: which pixels are repainted, and in which forms models take that.

use candle_core::{DType, Device, Result, Tensor};

use super::super::grid::TokenGrid;
use super::super::vae;
use crate::domain::image::RgbImage;

/// Pixels along one side of a latent position.
const LATENT_PIXELS: usize = 8;

/// Latent positions along one side of a token.
const PATCH: usize = 2;

/// Gray from which on a pixel is repainted: half of white.
const WHITE_FROM: u32 = 128;

/// For each pixel of a mask 1 where it is repainted, else 0, row by row. Colors count by the luma of PIL's mode "L", from half of
/// white on (the mask processor of diffusers, `VaeImageProcessor` with `do_binarize`).
fn repainted(mask: &RgbImage) -> Vec<u8> {
    let luma = |pixel: &[u8]| {
        let [red, green, blue] = [0, 1, 2].map(|color| u32::from(pixel[color]));
        (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16
    };
    mask.pixels().chunks_exact(3).map(|pixel| u8::from(luma(pixel) >= WHITE_FROM)).collect()
}

/// The pixels of an image outside of a mask of its size, with gray in the place of the others: `[1, 3, height, width]` from -1 to 1,
/// f32.
///
/// # Errors
/// When the device is out of memory.
pub(super) fn surroundings(image: &RgbImage, mask: &RgbImage, device: &Device) -> Result<Tensor> {
    let kept: Vec<f32> = repainted(mask).into_iter().map(|is_repainted| 1.0 - f32::from(is_repainted)).collect();
    let kept = Tensor::from_vec(kept, (1, 1, mask.height() as usize, mask.width() as usize), &Device::Cpu)?;
    vae::pixels_of(image, &Device::Cpu)?.broadcast_mul(&kept)?.to_device(device)
}

/// A mask cut into tokens, latent positions and pixels: `[rows, 2, 8, columns, 2, 8]`.
fn cut(mask: &RgbImage, grid: &TokenGrid, device: &Device) -> Result<Tensor> {
    let shape = vec![grid.rows, PATCH, LATENT_PIXELS, grid.columns, PATCH, LATENT_PIXELS];
    Tensor::from_vec(repainted(mask), shape, device)
}

/// A mask as FLUX.1-Fill reads it, `[tokens, 256]`, f32: for each pixel of a latent position its value in the four positions of the
/// token (`FluxFillPipeline.prepare_mask_latents` of diffusers).
///
/// # Errors
/// When the mask is not of the grid's size, or the device is out of memory.
pub(crate) fn fill_channels(mask: &RgbImage, grid: &TokenGrid, device: &Device) -> Result<Tensor> {
    let channels = (PATCH * LATENT_PIXELS).pow(2);
    let packed = cut(mask, grid, device)?.permute(vec![0, 3, 2, 5, 1, 4])?.contiguous()?;
    packed.reshape((grid.tokens(), channels))?.to_dtype(DType::F32)
}

/// A mask for packed latents, `[tokens, channels × 2 × 2]`, u8: the value of the first pixel of each latent position, in all channels
/// (`FluxInpaintPipeline.prepare_mask_latents` of diffusers).
///
/// # Errors
/// When the mask is not of the grid's size, or the device is out of memory.
pub(crate) fn latent_mask(mask: &RgbImage, grid: &TokenGrid, device: &Device) -> Result<Tensor> {
    let first = cut(mask, grid, device)?.narrow(2, 0, 1)?.narrow(5, 0, 1)?;
    let (tokens, positions) = (grid.tokens(), PATCH * PATCH);
    let packed = first.permute(vec![0, 3, 1, 4, 2, 5])?.contiguous()?.reshape((tokens, 1, positions))?;
    packed.broadcast_as((tokens, grid.channels, positions))?.contiguous()?.reshape((tokens, grid.channels * positions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(width: u32, height: u32, is_white: impl Fn(u32, u32) -> bool) -> RgbImage {
        let pixel = |at: u32| [if is_white(at % width, at / width) { 255 } else { 0 }; 3];
        RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).expect("three bytes a pixel")
    }

    #[test]
    fn a_pixel_is_repainted_from_half_of_white_on() {
        for (color, is_repainted) in [
            ([0, 0, 0], 0),
            ([127, 127, 127], 0),
            ([128, 128, 128], 1),
            ([255, 0, 0], 0),
            ([0, 255, 0], 1),
            ([0, 216, 0], 0),
            ([0, 218, 0], 1),
            ([255, 88, 0], 1),
        ] {
            let mask = RgbImage::new(1, 1, color.to_vec()).expect("a pixel");
            assert_eq!(repainted(&mask), [is_repainted], "{color:?}");
        }
    }

    #[test]
    fn each_pixel_of_a_mask_is_a_channel_of_its_token() {
        let grid = TokenGrid { rows: 2, columns: 3, channels: 16 };
        // The last token, its upper right position, and there the pixel in row 3 and column 5.
        let mask = mask(48, 32, |x, y| (x, y) == (32 + 8 + 5, 16 + 3));
        let channels =
            fill_channels(&mask, &grid, &Device::Cpu).and_then(|all| all.to_vec2::<f32>()).expect("channels");
        let white: Vec<(usize, usize)> = channels
            .iter()
            .enumerate()
            .flat_map(|(token, row)| row.iter().enumerate().filter(|(_, v)| **v > 0.0).map(move |(at, _)| (token, at)))
            .collect();
        assert_eq!(white, [(5, (3 * 8 + 5) * 4 + 1)]);
    }

    #[test]
    fn the_first_pixel_of_a_latent_position_decides_for_all_channels() {
        let grid = TokenGrid { rows: 1, columns: 2, channels: 2 };
        let of = |is_white: fn(u32, u32) -> bool| {
            let mask = latent_mask(&mask(32, 16, is_white), &grid, &Device::Cpu).expect("a mask");
            mask.to_vec2::<u8>().expect("bytes")
        };
        assert_eq!(of(|x, y| (x, y) == (24, 0)), [[0; 8], [0, 1, 0, 0, 0, 1, 0, 0]]);
        assert_eq!(of(|x, y| (x, y) == (0, 8)), [[0, 0, 1, 0, 0, 0, 1, 0], [0; 8]]);
        assert_eq!(of(|x, y| (x, y) == (25, 1)), [[0; 8]; 2]);
    }

    #[test]
    fn what_is_repainted_is_gray_in_the_surroundings() {
        let image = RgbImage::new(2, 1, vec![255, 0, 255, 255, 0, 255]).expect("two pixels");
        let left = surroundings(&image, &mask(2, 1, |x, _| x == 1), &Device::Cpu).expect("pixels");
        let left: Vec<f32> = left.flatten_all().and_then(|all| all.to_vec1()).expect("numbers");
        assert_eq!(left, [1.0, 0.0, -1.0, 0.0, 1.0, 0.0]);
    }
}
