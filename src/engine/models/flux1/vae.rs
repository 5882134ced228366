//! The autoencoder: `decoder.rs` turns latents to pixels, `encoder.rs` pixels to latents.

mod blocks;
mod decoder;
mod encoder;
mod strips;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

pub(crate) use decoder::{Decoder, Decoding, STRIP_ROWS, UPSAMPLINGS_IN_STRIPS};
pub(crate) use encoder::{Advanced, Encoder, Encoding, pixels_of};

/// Pixels about -1 to 1, `[1, 3, height, width]`, as bytes row by row, each by [`to_byte`]. `None` when any of them is not
/// finite.
///
/// # Errors
/// When the device fails.
pub(crate) fn to_rgb_bytes(pixels: &Tensor) -> Result<Option<Vec<u8>>> {
    // Permuted on the device, where it costs next to nothing.
    let interleaved = pixels.squeeze(0)?.permute((1, 2, 0))?.contiguous()?.to_device(&Device::Cpu)?;
    let values = interleaved.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if values.par_iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    Ok(Some(values.into_par_iter().map(to_byte).collect()))
}

/// A color's value, about -1 to 1, as a byte: `round_half_even(255 × clamp(x / 2 + 1 / 2))`, as diffusers rounds.
pub(crate) fn to_byte(value: f32) -> u8 {
    (255.0 * (value / 2.0 + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8
}
