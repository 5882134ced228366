//! What turns numbers and vectors into the modulation's input.

use candle_core::{DType, Device, Result, Tensor};

use super::super::config::TransformerConfig;
use super::stream::Conditioned;
use crate::engine::adapted::{AdapterSet, Changes};
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;
use crate::engine::ops::activation::silu;

/// Width of the sinusoid that encodes a time or a guidance value.
const SINUSOID_WIDTH: usize = 256;

/// The embedders of a prompt, of the guidance and of the noise level.
pub(super) struct Embedders {
    guidance: Option<Embedder>,
    /// Of T5's tokens.
    text: Linear,
    time: Embedder,
    /// Of CLIP's pooled vector.
    pooled: Embedder,
    device: Device,
    dtype: DType,
}

impl Embedders {
    /// Loads them, and among them, where the files have it, the embedder of the image's tokens.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(super) fn load(config: &TransformerConfig, vb: &Tensors) -> Result<(Linear, Self)> {
        let hidden = config.hidden_size();
        let embedder = |name: &str, inputs| Embedder::load(inputs, hidden, &vb.pp(name));
        let guidance = config.guidance_embeds.then(|| embedder("guidance_in", SINUSOID_WIDTH)).transpose()?;
        let image = Linear::load(config.in_channels, hidden, &vb.pp("img_in"))?;
        let text = Linear::load(config.joint_attention_dim, hidden, &vb.pp("txt_in"))?;
        let time = embedder("time_in", SINUSOID_WIDTH)?;
        let pooled = embedder("vector_in", config.pooled_projection_dim)?;
        let (device, dtype) = (vb.device().clone(), vb.dtype());
        Ok((image, Self { guidance, text, time, pooled, device, dtype }))
    }

    /// T5's sequence `[tokens, joint_attention_dim]` as blocks take it, `[tokens, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn text(&self, sequence: &Tensor, adapters: &AdapterSet) -> Result<Tensor> {
        self.text.changed(&sequence.to_dtype(self.dtype)?, &Changes::of([(0..sequence.dim(0)?, adapters)]))
    }

    /// What is the same in every step of the modulation's input: guidance and CLIP's pooled vector `[1, pooled_projection_dim]` ->
    /// `[1, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn condition(&self, pooled: &Tensor, guidance: f64, adapters: &AdapterSet) -> Result<Tensor> {
        let changes = Changes::of([(0..1, adapters)]);
        let pooled = self.pooled.forward(&pooled.to_dtype(self.dtype)?, &changes)?;
        match &self.guidance {
            Some(embedder) => embedder.forward(&self.sinusoid(&[guidance as f32 * 1000.0])?, &changes)? + pooled,
            None => Ok(pooled),
        }
    }

    /// The modulation's input for steps, `[steps, hidden]`. `changes` are of these rows.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn steps(&self, steps: &[Conditioned], changes: &Changes) -> Result<Tensor> {
        let times: Vec<f32> = steps.iter().map(|step| model_time(step.sigma)).collect();
        let conditions: Vec<&Tensor> = steps.iter().map(|step| step.condition).collect();
        let time = self.time.forward(&self.sinusoid(&times)?, changes)?;
        silu(&(time + Tensor::cat(&conditions, 0)?)?)
    }

    fn sinusoid(&self, values: &[f32]) -> Result<Tensor> {
        sinusoid(values, self.dtype, &self.device)
    }
}

/// Two linear layers with SiLU between them.
struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    /// From `inputs` to `width`.
    fn load(inputs: usize, width: usize, vb: &Tensors) -> Result<Self> {
        Ok(Self {
            first: Linear::load(inputs, width, &vb.pp("in_layer"))?,
            second: Linear::load(width, width, &vb.pp("out_layer"))?,
        })
    }

    /// `[rows, inputs]` -> `[rows, width]`.
    fn forward(&self, x: &Tensor, changes: &Changes) -> Result<Tensor> {
        self.second.changed(&silu(&self.first.changed(x, changes)?)?, changes)
    }
}

/// `[values, 256]`: cosines, then sines, of each value times frequencies from 1 down to 1/10000
/// (diffusers' `get_timestep_embedding` with `flip_sin_to_cos`), computed in f32 as there.
fn sinusoid(values: &[f32], dtype: DType, device: &Device) -> Result<Tensor> {
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
fn model_time(sigma: f32) -> f32 {
    sigma * 1000.0 / 1000.0 * 1000.0
}
