//! What the autoencoder holds at a time, counted from its blocks.

use candle_core::DType;

use crate::engine::models::flux1::config::VaeConfig;
use crate::engine::models::flux1::{STRIP_ROWS, UPSAMPLINGS_IN_STRIPS};

/// What is held beside activations: the image itself in f32 and as bytes, statistics, and a reserve.
pub(super) const PIXEL_RESERVE: usize = 256;

/// The same in strips: the image itself takes form when little else is held any more.
pub(super) const STRIPS_PIXEL_RESERVE: usize = 32;

/// Bytes of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelBytes {
    /// While an image is decoded as a whole.
    pub(super) decoding: usize,
    /// While it is decoded in strips. Beside them, what is held of a strip comes out of the workspace: 120 MB for 2048 columns.
    pub(super) decoding_strips: usize,
    /// While an input image is encoded.
    pub(super) encoding: usize,
}

impl PixelBytes {
    /// On a device with kernels of its own for convolutions.
    pub(super) fn of(vae: &VaeConfig, dtype: DType) -> Self {
        let widths = Widths(vae);
        let size = dtype.size_in_bytes();
        Self {
            // The first block of the last level, which reads the channels of the level before: its input, the normalized input,
            // and the output of its first convolution.
            decoding: (2 * widths.widest(0) + widths.of(0)) * size + PIXEL_RESERVE,
            decoding_strips: widths.in_strips() * size + STRIPS_PIXEL_RESERVE,
            // A block of the first level: its input, the normalized activation, and the output of a convolution. The level ends
            // with a convolution at the full size, of which every other pixel is kept.
            encoding: 3 * widths.of(0) * size + PIXEL_RESERVE,
        }
    }
}

/// Bytes that the CPU holds while it decodes an image, beside its latents and the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostDecoding {
    pub(crate) whole: usize,
    pub(crate) strips: usize,
}

impl HostDecoding {
    /// Of an image of so many rows and columns, in f32.
    pub(crate) fn of(vae: &VaeConfig, rows: usize, columns: usize) -> Self {
        let widths = Widths(vae);
        let pixels = rows * columns * DType::F32.size_in_bytes();
        // The last upsampling holds its input, that with doubled sides, and its output; a block what it holds on a device, too.
        let upsampling = 2 * widths.widest(0) + widths.widest(0) / 4;
        let block = 2 * widths.widest(0) + widths.of(0);
        // Of the widest strips two, and one that is normalized.
        let strip = 3 * widths.widest(0) * rows.min(STRIP_ROWS) * columns * DType::F32.size_in_bytes();
        Self { whole: upsampling.max(block) * pixels, strips: widths.in_strips() * pixels + strip }
    }

    /// Maximum pixels of an image that can be decoded as a whole in so many bytes.
    pub(super) fn whole_pixels_max(vae: &VaeConfig, bytes: u64) -> usize {
        let pixel = Self::of(vae, 1, 1).whole.max(1) as u64;
        usize::try_from(bytes / pixel).unwrap_or(usize::MAX)
    }
}

/// Channels of the decoder's levels. The first is at the image's own size, and each other at half the size of the one before.
struct Widths<'a>(&'a VaeConfig);

impl Widths<'_> {
    fn of(&self, level: usize) -> usize {
        self.0.block_out_channels.get(level).copied().unwrap_or_default()
    }

    /// What a level's first block reads or writes.
    fn widest(&self, level: usize) -> usize {
        self.of(level).max(self.of(level + 1))
    }

    /// Numbers held for each pixel of an image in strips: the outputs of two layers of a level in strips, or a block of the last level
    /// that is not.
    fn in_strips(&self) -> usize {
        let last = UPSAMPLINGS_IN_STRIPS.min(self.0.block_out_channels.len().saturating_sub(1));
        let whole = (2 * self.widest(last) + 2 * self.of(last)) >> (2 * last);
        (0..last).map(|level| (2 * self.of(level)) >> (2 * level)).fold(whole, usize::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::models::flux1::config::Configs;

    #[test]
    fn a_pixel_takes_what_the_blocks_at_full_size_hold() {
        let vae = Configs::flux_dev().vae;
        let PixelBytes { decoding, decoding_strips, encoding } = PixelBytes::of(&vae, DType::BF16);
        assert_eq!(decoding - PIXEL_RESERVE, 1280);
        assert_eq!(decoding_strips - STRIPS_PIXEL_RESERVE, 512);
        assert_eq!(encoding - PIXEL_RESERVE, 768);
    }

    /// Of large images: on CUDA two and a half times less, on the CPU half.
    #[test]
    fn strips_take_a_fraction_of_the_memory() {
        let vae = Configs::flux_dev().vae;
        let pixel = PixelBytes::of(&vae, DType::BF16);
        for side in [1024, 2048] {
            // Two strips, one that is normalized, and a convolution's output with its copy.
            let strip = 4 * 256 * STRIP_ROWS * side * DType::BF16.size_in_bytes();
            let (whole, strips) = (pixel.decoding * side * side, pixel.decoding_strips * side * side + strip);
            assert!(2 * whole > 5 * strips, "{side}: {whole} and {strips} bytes");
            let HostDecoding { whole, strips } = HostDecoding::of(&vae, side, side);
            assert!(whole > 2 * strips, "{side}: {whole} and {strips} bytes");
        }
        assert_eq!(HostDecoding::whole_pixels_max(&vae, 2560 * 1000), 1000);
    }
}
