//! What turns numbers and vectors into the modulation's input.

use candle_core::{DType, Device, Result, Tensor};

use crate::engine::adapted::Changes;
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;
use crate::engine::ops::activation::silu;

/// Width of the sinusoid that encodes a time or a guidance value.
pub(super) const SINUSOID_WIDTH: usize = 256;

/// Two linear layers with SiLU between them.
pub(super) struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    /// From `inputs` to `width`.
    pub(super) fn load(inputs: usize, width: usize, vb: &Tensors) -> Result<Self> {
        Ok(Self {
            first: Linear::load(inputs, width, &vb.pp("in_layer"))?,
            second: Linear::load(width, width, &vb.pp("out_layer"))?,
        })
    }

    /// `[rows, inputs]` -> `[rows, width]`.
    pub(super) fn forward(&self, x: &Tensor, changes: &Changes) -> Result<Tensor> {
        self.second.changed(&silu(&self.first.changed(x, changes)?)?, changes)
    }
}

/// `[values, 256]`: cosines, then sines, of each value times frequencies from 1 down to 1/10000
/// (diffusers' `get_timestep_embedding` with `flip_sin_to_cos`), computed in f32 as there.
pub(super) fn sinusoid(values: &[f32], dtype: DType, device: &Device) -> Result<Tensor> {
    let half = SINUSOID_WIDTH / 2;
    let frequency = |index: usize| (-(10_000.0_f64.ln() as f32) * index as f32 / half as f32).exp();
    let mut out = Vec::with_capacity(values.len() * SINUSOID_WIDTH);
    for &value in values {
        out.extend((0..half).map(|index| (value * frequency(index)).cos()));
        out.extend((0..half).map(|index| (value * frequency(index)).sin()));
    }
    Tensor::from_vec(out, (values.len(), SINUSOID_WIDTH), device)?.to_dtype(dtype)
}

/// A noise level as the model takes it: the scheduler multiplies by 1000, the pipeline divides, the model multiplies
/// again, each in f32.
pub(super) fn model_time(sigma: f32) -> f32 {
    sigma * 1000.0 / 1000.0 * 1000.0
}
