//! What a picture is going to look like, without the decoder's work: each latent pixel gives one pixel, by a linear map.
//!
//! The map is learnt when the engine is built, from the decoder itself: it decodes a sheet of random flat patches, and the
//! colours that come out are fitted to the latents that went in by least squares. So it is right for any autoencoder, and
//! no table of numbers has to come along with one.

use candle_core::{DType, Device, Result, Tensor};

use super::noise::standard_normal;
use super::vae::Decoder;

/// Flat patches along one side of the sheet.
const PATCHES: usize = 16;
/// Latent pixels along one side of a patch: its middle is out of its neighbours' reach.
const PATCH: usize = 2;
/// Pixels that one latent pixel stands for, along one side.
const SCALE: usize = 8;
const SHEET_SEED: u64 = 1;

/// From latent channels to red, green and blue.
pub(crate) struct Preview {
    /// `[3, channels]`, f32.
    weights: Tensor,
    /// `[3, 1]`, f32.
    bias: Tensor,
}

impl Preview {
    /// Learns the map from `decoder`. `None` when it decodes to numbers that are not finite.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn learn(decoder: &Decoder, channels: usize, device: &Device) -> Result<Option<Self>> {
        let side = PATCHES * PATCH;
        let noise = standard_normal(SHEET_SEED, 0, channels * PATCHES * PATCHES);
        let sheet = Tensor::from_vec(noise, (1, channels, PATCHES, PATCHES), device)?.upsample_nearest2d(side, side)?;
        let pixels = decoder.decode(&sheet)?.avg_pool2d(SCALE)?;
        let columns = |tensor: &Tensor| -> Result<Vec<Vec<f32>>> {
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.squeeze(0)?.flatten_from(1)?.to_vec2()
        };
        let Some(map) = fit(&columns(&sheet)?, &columns(&pixels)?) else { return Ok(None) };
        let (weights, bias): (Vec<_>, Vec<_>) =
            map.into_iter().map(|mut row| (row.split_off(1), row.pop().unwrap_or_default())).unzip();
        Ok(Some(Self { weights: Tensor::new(weights, device)?, bias: Tensor::new(bias, device)?.unsqueeze(1)? }))
    }

    /// Latents `[1, channels, height, width]` -> pixels `[1, 3, height, width]`, about -1 to 1. f32.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn pixels(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        let flat = latents.squeeze(0)?.flatten_from(1)?.contiguous()?;
        let pixels = self.weights.matmul(&flat)?.broadcast_add(&self.bias)?;
        pixels.reshape((1, 3, height, width))
    }
}

/// For each of `targets` its constant and its weight of each of `inputs`, by least squares over all places. `None` when
/// there is no such map, or a number is not finite.
fn fit(inputs: &[Vec<f32>], targets: &[Vec<f32>]) -> Option<Vec<Vec<f32>>> {
    let places = inputs.first()?.len();
    let ones = vec![1.0; places];
    let inputs: Vec<&[f32]> = std::iter::once(&ones[..]).chain(inputs.iter().map(Vec::as_slice)).collect();
    let product = |one: &[f32], other: &[f32]| -> f64 {
        one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
    };
    // The normal equations, with one more column for each target.
    let mut rows: Vec<Vec<f64>> = inputs
        .iter()
        .map(|row| {
            let columns = inputs.iter().copied().chain(targets.iter().map(Vec::as_slice));
            columns.map(|column| product(row, column)).collect()
        })
        .collect();
    let count = rows.len();
    for pivot in 0..count {
        let best = (pivot..count).max_by(|one, other| rows[*one][pivot].abs().total_cmp(&rows[*other][pivot].abs()))?;
        rows.swap(pivot, best);
        let scale = rows[pivot][pivot];
        if !scale.is_normal() {
            return None;
        }
        rows[pivot].iter_mut().for_each(|value| *value /= scale);
        let row = rows[pivot].clone();
        for (_, other) in rows.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
            let factor = other[pivot];
            other.iter_mut().zip(&row).for_each(|(value, own)| *value -= factor * own);
        }
    }
    let map: Vec<Vec<f32>> =
        (count..count + targets.len()).map(|column| rows.iter().map(|row| row[column] as f32).collect()).collect();
    map.iter().flatten().all(|value| value.is_finite()).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        let inputs = vec![standard_normal(1, 0, 64), standard_normal(2, 0, 64)];
        let target = |constant: f32, first: f32, second: f32| {
            inputs[0].iter().zip(&inputs[1]).map(|(a, b)| constant + first * a + second * b).collect()
        };
        let map = fit(&inputs, &[target(0.5, 2.0, -1.0), target(-1.0, 0.0, 0.25)]).expect("a map");
        for (found, expected) in map.iter().flatten().zip([0.5, 2.0, -1.0, -1.0, 0.0, 0.25]) {
            assert!((found - expected).abs() < 1e-5, "{map:?}");
        }
    }

    #[test]
    fn without_a_map_there_is_none() {
        assert!(fit(&[vec![0.0; 16]], &[vec![1.0; 16]]).is_none());
        assert!(fit(&[standard_normal(1, 0, 16)], &[vec![f32::NAN; 16]]).is_none());
    }
}
