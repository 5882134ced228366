//! The FLUX transformer over a packed token stream, which batches images of any sizes, at any steps.
//!
//! Follows `Flux.forward` of the reference implementation (black-forest-labs/flux, `model.py`), whose tensor names it
//! uses. Where that has a batch dimension, here is one stream of tokens, cut into sequences: every linear layer runs
//! once over the whole stream, modulation is per sequence, and attention stays inside each sequence.

mod block;
mod embedders;
mod feed_forward;
mod modulation;
mod stream;

use candle_core::{DType, Device, Result, Tensor};

use super::config::TransformerConfig;
use super::positions;
use crate::domain::precision::Precision;
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;
use crate::engine::ops::activation::silu;
use crate::engine::ops::modulation::modulated_layer_norm;
use crate::engine::ops::rope::Rotary;

use block::{DoubleBlock, SingleBlock};
use embedders::{Embedder, SINUSOID_WIDTH, model_time, sinusoid};
use modulation::{FINAL_PARTS, Modulations, ModulationsLoader};
pub(crate) use stream::Sequence;
use stream::Stream;

/// The transformer's weights.
pub(crate) struct Transformer {
    config: TransformerConfig,
    img_in: Linear,
    txt_in: Linear,
    time_in: Embedder,
    vector_in: Embedder,
    guidance_in: Option<Embedder>,
    double_blocks: Vec<DoubleBlock>,
    single_blocks: Vec<SingleBlock>,
    modulations: Modulations,
    /// The first part of the final layer's modulation.
    final_modulation: usize,
    final_linear: Linear,
    device: Device,
    dtype: DType,
}

impl Transformer {
    /// Loads the weights; those of the blocks' linear layers are kept in `precision`.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(config: &TransformerConfig, vb: &Tensors, precision: Precision) -> Result<Self> {
        let hidden = config.hidden_size();
        let embedder = |name: &str, inputs| Embedder::load(inputs, hidden, &vb.pp(name));
        let guidance_in = config.guidance_embeds.then(|| embedder("guidance_in", SINUSOID_WIDTH)).transpose()?;
        let mut modulations = ModulationsLoader::new(config, vb)?;
        Ok(Self {
            img_in: Linear::load(config.in_channels, hidden, &vb.pp("img_in"))?,
            txt_in: Linear::load(config.joint_attention_dim, hidden, &vb.pp("txt_in"))?,
            time_in: embedder("time_in", SINUSOID_WIDTH)?,
            vector_in: embedder("vector_in", config.pooled_projection_dim)?,
            guidance_in,
            double_blocks: (0..config.num_layers)
                .map(|index| {
                    let vb = vb.pp(format!("double_blocks.{index}"));
                    DoubleBlock::load(config, precision, &mut modulations, &vb)
                })
                .collect::<Result<_>>()?,
            single_blocks: (0..config.num_single_layers)
                .map(|index| {
                    let vb = vb.pp(format!("single_blocks.{index}"));
                    SingleBlock::load(config, precision, &mut modulations, &vb)
                })
                .collect::<Result<_>>()?,
            final_modulation: modulations.load(FINAL_PARTS, &vb.pp("final_layer.adaLN_modulation.1"))?,
            modulations: modulations.finish()?,
            final_linear: Linear::load(hidden, config.in_channels, &vb.pp("final_layer.linear"))?,
            device: vb.device().clone(),
            dtype: vb.dtype(),
            config: config.clone(),
        })
    }

    /// The length of a sequence at which attention costs as much as everything else, in tokens. Both kinds of blocks have
    /// 24 × hidden² floating-point operations a token in their linear layers (an MLP is four times as wide as the stream),
    /// and 4 × hidden for each pair of tokens in attention.
    pub(crate) fn attention_balance_tokens(&self) -> usize {
        6 * self.config.hidden_size()
    }

    /// T5's sequence `[tokens, joint_attention_dim]` as the blocks take it, `[tokens, hidden]`. The same in every step.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn embed_text(&self, sequence: &Tensor) -> Result<Tensor> {
        self.txt_in.forward(&sequence.to_dtype(self.dtype)?)
    }

    /// The part of the modulation's input that is the same in every step: guidance and CLIP's pooled vector
    /// `[1, pooled_projection_dim]` -> `[1, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn embed_condition(&self, pooled: &Tensor, guidance: f64) -> Result<Tensor> {
        let pooled = self.vector_in.forward(&pooled.to_dtype(self.dtype)?)?;
        match &self.guidance_in {
            Some(guidance_in) => guidance_in.forward(&self.sinusoid(&[guidance as f32 * 1000.0])?)? + pooled,
            None => Ok(pooled),
        }
    }

    /// The rotary tables of an image of `rows × columns` tokens behind its text.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn rotary(&self, text_tokens: usize, rows: usize, columns: usize) -> Result<Rotary> {
        positions::image_tables(rows, columns, self.config.axes_dims_rope, &self.device)?.after_text(text_tokens)
    }

    /// Predicts the velocity (noise minus image) of every sequence: `[image tokens, in_channels]` each, f32, in the
    /// order of `sequences`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn velocities(&self, sequences: &[Sequence]) -> Result<Vec<Tensor>> {
        let stream = self.stream(sequences)?;
        let latents: Vec<Tensor> =
            sequences.iter().map(|sequence| sequence.latents.to_dtype(self.dtype)).collect::<Result<_>>()?;
        let texts: Vec<&Tensor> = sequences.iter().map(|sequence| sequence.text).collect();
        let mut image = self.img_in.forward(&Tensor::cat(&latents, 0)?)?;
        let mut text = Tensor::cat(&texts, 0)?;
        for block in &self.double_blocks {
            (text, image) = block.forward(&text, &image, &stream)?;
        }
        let mut joint = stream.join(&text, &image)?;
        drop((text, image));
        for block in &self.single_blocks {
            joint = block.forward(&joint, &stream)?;
        }
        let (_, image) = stream.split(&joint)?;
        let (shift, scale) =
            (stream.modulated.part(self.final_modulation)?, stream.modulated.part(self.final_modulation + 1)?);
        let image = modulated_layer_norm(&image, &shift, &scale, &stream.image_segments)?;
        let out = self.final_linear.forward(&image)?.to_dtype(DType::F32)?;
        stream.image_segments.ranges().map(|range| out.narrow(0, range.start, range.len())?.contiguous()).collect()
    }

    fn stream(&self, sequences: &[Sequence]) -> Result<Stream> {
        let known: Option<Vec<&Tensor>> = sequences.iter().map(|sequence| sequence.modulation).collect();
        let rows = if let Some(rows) = known {
            Tensor::cat(&rows, 0)?
        } else {
            let rows: Vec<_> = sequences.iter().map(|sequence| (sequence.sigma, sequence.condition)).collect();
            self.modulation_rows(&rows)?
        };
        Stream::new(sequences, self.modulations.of_rows(rows))
    }

    /// The modulations of steps, `[1, parts × hidden]` for each noise level and condition. All weights are read once,
    /// however many steps there are.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn modulations(&self, steps: &[(f32, &Tensor)]) -> Result<Vec<Tensor>> {
        let rows = self.modulation_rows(steps)?;
        (0..steps.len()).map(|row| rows.narrow(0, row, 1)).collect()
    }

    fn modulation_rows(&self, steps: &[(f32, &Tensor)]) -> Result<Tensor> {
        let times: Vec<f32> = steps.iter().map(|(sigma, _)| model_time(*sigma)).collect();
        let conditions: Vec<&Tensor> = steps.iter().map(|(_, condition)| *condition).collect();
        let time = self.time_in.forward(&self.sinusoid(&times)?)?;
        self.modulations.forward(&silu(&(time + Tensor::cat(&conditions, 0)?)?)?)
    }

    fn sinusoid(&self, values: &[f32]) -> Result<Tensor> {
        sinusoid(values, self.dtype, &self.device)
    }
}
