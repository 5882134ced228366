//! The size of an image in tokens, and its latents in that form.

use candle_core::{Device, Result, Tensor};

use crate::domain::spec::{GenerateSpec, PIXELS_PER_TOKEN_SIDE};

/// Latent pixels along one side of a token.
const PATCH: usize = 2;

/// The size of an image in tokens, and its latent channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenGrid {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) channels: usize,
}

impl TokenGrid {
    /// Of an image to be generated.
    pub(crate) fn of(spec: &GenerateSpec, channels: usize) -> Self {
        Self::of_sides(spec.width(), spec.height(), channels)
    }

    /// Of an image of so many pixels.
    pub(crate) fn of_sides(width: u32, height: u32, channels: usize) -> Self {
        let tokens = |pixels: u32| (pixels / PIXELS_PER_TOKEN_SIDE) as usize;
        Self { rows: tokens(height), columns: tokens(width), channels }
    }

    /// Its tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.rows * self.columns
    }

    /// Its rows and columns.
    pub(crate) fn sides(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Numbers in the latents.
    pub(crate) fn elements(&self) -> usize {
        self.rows * self.columns * self.channels * PATCH * PATCH
    }

    /// Latents `[1, channels, height / 8, width / 8]` from a flat list.
    pub(crate) fn latents(&self, values: Vec<f32>, device: &Device) -> Result<Tensor> {
        Tensor::from_vec(values, (1, self.channels, self.rows * PATCH, self.columns * PATCH), device)
    }

    /// Latents `[1, channels, height / 8, width / 8]` -> packed tokens `[tokens, channels × 2 × 2]`: channel first, then
    /// row, then column inside a token.
    pub(crate) fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        latents
            .reshape((self.channels, self.rows, PATCH, self.columns, PATCH))?
            .permute((1, 3, 0, 2, 4))?
            .reshape((self.rows * self.columns, self.channels * PATCH * PATCH))
    }

    /// The inverse of [`Self::pack`].
    pub(crate) fn unpack(&self, tokens: &Tensor) -> Result<Tensor> {
        tokens.reshape((self.rows, self.columns, self.channels, PATCH, PATCH))?.permute((2, 0, 3, 1, 4))?.reshape((
            1,
            self.channels,
            self.rows * PATCH,
            self.columns * PATCH,
        ))
    }
}
