//! The FLUX transformer over a packed token stream: images of any sizes, at any steps, ride together.
//!
//! Follows `Flux.forward` of the reference implementation (black-forest-labs/flux, `model.py`), whose tensor names it
//! uses. Where that has a batch dimension, here is one stream of tokens, cut into sequences: every linear layer runs
//! once over the whole stream, modulation is per sequence, and attention stays inside each sequence.

mod block;
mod block_linear;
mod linear;
mod modulation;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::loader::config::TransformerConfig;
use super::ops::activation::silu;
use super::ops::modulation::modulated_layer_norm;
use super::ops::rope::Rotary;
use super::ops::{Places, Segments};
use crate::domain::precision::Precision;

use block::{DoubleBlock, SingleBlock};
use linear::{Linear, Mlp};
use modulation::{FINAL_PARTS, Modulated, Modulations};

/// Width of the sinusoid that encodes a time or a guidance value.
const SINUSOID_WIDTH: usize = 256;

/// Base of the rotary frequencies.
const ROTARY_THETA: f64 = 10_000.0;

/// The transformer's weights.
pub(crate) struct Transformer {
    config: TransformerConfig,
    img_in: Linear,
    txt_in: Linear,
    time_in: Mlp,
    vector_in: Mlp,
    guidance_in: Option<Mlp>,
    double_blocks: Vec<DoubleBlock>,
    single_blocks: Vec<SingleBlock>,
    modulations: Modulations,
    /// The first part of the final layer's modulation.
    final_modulation: usize,
    final_linear: Linear,
    device: Device,
    dtype: DType,
}

/// One sequence's part in a step: an image, or one of the two passes of true classifier-free guidance.
pub(crate) struct Sequence<'a> {
    /// Noisy latents as packed tokens, `[image tokens, in_channels]`, f32.
    pub(crate) latents: &'a Tensor,
    /// From [`Transformer::embed_text`], `[text tokens, hidden]`.
    pub(crate) text: &'a Tensor,
    /// From [`Transformer::embed_condition`], `[1, hidden]`.
    pub(crate) condition: &'a Tensor,
    /// The rotary tables of its text and image tokens.
    pub(crate) rotary: &'a Rotary,
    /// Noise level of this step, 1 down to 0.
    pub(crate) sigma: f32,
}

/// Everything about the stream that is the same in all blocks.
pub(super) struct Stream {
    pub(super) image_segments: Segments,
    pub(super) text_segments: Segments,
    pub(super) joint_segments: Segments,
    /// Where image and text stand in the joint stream: each sequence's text first.
    pub(super) image_places: Places,
    pub(super) text_places: Places,
    /// Tables of the image tokens alone.
    pub(super) image_rotary: Rotary,
    /// Tables of text and image tokens in joint order.
    pub(super) joint_rotary: Rotary,
    /// Shifts, scales and gates of all blocks.
    modulated: Modulated,
}

impl Stream {
    /// Text and image streams as one, sequence by sequence, text first.
    pub(super) fn join(&self, text: &Tensor, image: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(2 * self.text_segments.count());
        for (text_range, image_range) in self.text_segments.ranges().zip(self.image_segments.ranges()) {
            parts.push(text.narrow(0, text_range.start, text_range.len())?);
            parts.push(image.narrow(0, image_range.start, image_range.len())?);
        }
        Tensor::cat(&parts, 0)
    }

    /// The inverse of [`Self::join`]: (text, image).
    pub(super) fn split(&self, joint: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut text, mut image) = (Vec::new(), Vec::new());
        for (sequence, range) in self.joint_segments.ranges().enumerate() {
            let text_length = self.text_segments.range(sequence).len();
            text.push(joint.narrow(0, range.start, text_length)?);
            image.push(joint.narrow(0, range.start + text_length, range.len() - text_length)?);
        }
        Ok((Tensor::cat(&text, 0)?, Tensor::cat(&image, 0)?))
    }
}

impl Transformer {
    /// Loads the weights.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(config: &TransformerConfig, vb: &VarBuilder, precision: Precision) -> Result<Self> {
        let hidden = config.hidden_size();
        let embedder = |name: &str, inputs| Mlp::load(inputs, hidden, hidden, ["in_layer", "out_layer"], &vb.pp(name));
        let guidance_in = config.guidance_embeds.then(|| embedder("guidance_in", SINUSOID_WIDTH)).transpose()?;
        let mut modulations = Modulations::new(config, vb)?;
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
            final_modulation: modulations.take(FINAL_PARTS, &vb.pp("final_layer.adaLN_modulation.1"))?,
            modulations,
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

    /// What stays the same in every step of the modulation's input: guidance and CLIP's pooled vector
    /// `[1, pooled_projection_dim]` -> `[1, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn embed_condition(&self, pooled: &Tensor, guidance: f64) -> Result<Tensor> {
        let pooled = self.vector_in.forward(&pooled.to_dtype(self.dtype)?, silu)?;
        match &self.guidance_in {
            Some(guidance_in) => guidance_in.forward(&self.sinusoid(&[guidance as f32 * 1000.0])?, silu)? + pooled,
            None => Ok(pooled),
        }
    }

    /// The rotary tables of an image of `rows × columns` tokens behind its text.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn rotary(&self, text_tokens: usize, rows: usize, columns: usize) -> Result<Rotary> {
        Rotary::of_image(rows, columns, self.config.axes_dims_rope, ROTARY_THETA, &self.device)?.after_text(text_tokens)
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
        let mut image_rotary = Vec::with_capacity(sequences.len());
        let (mut image_lengths, mut text_lengths) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let (text_length, image_length) = (sequence.text.dim(0)?, sequence.latents.dim(0)?);
            if sequence.rotary.tokens() != text_length + image_length {
                bail!("{text_length} and {image_length} tokens with tables of {}", sequence.rotary.tokens());
            }
            text_lengths.push(text_length);
            image_lengths.push(image_length);
            image_rotary.push(sequence.rotary.starting_at(text_length)?);
        }
        let joint_lengths = text_lengths.iter().zip(&image_lengths).map(|(text, image)| text + image);
        let joint_rotary: Vec<&Rotary> = sequences.iter().map(|sequence| sequence.rotary).collect();
        let sigmas: Vec<f32> = sequences.iter().map(|sequence| model_time(sequence.sigma)).collect();
        let conditions: Vec<&Tensor> = sequences.iter().map(|sequence| sequence.condition).collect();
        let time = self.time_in.forward(&self.sinusoid(&sigmas)?, silu)?;
        let joint_segments = Segments::from_lengths(joint_lengths);
        let (text_segments, image_segments) =
            (Segments::from_lengths(text_lengths.iter().copied()), Segments::from_lengths(image_lengths));
        let text_starts: Vec<usize> = joint_segments.ranges().map(|range| range.start).collect();
        let image_starts = text_starts.iter().zip(&text_lengths).map(|(start, length)| start + length);
        Ok(Stream {
            image_places: Places::new(&image_segments, image_starts),
            text_places: Places::new(&text_segments, text_starts.iter().copied()),
            joint_segments,
            image_segments,
            text_segments,
            image_rotary: Rotary::concatenate(&image_rotary.iter().collect::<Vec<_>>())?,
            joint_rotary: Rotary::concatenate(&joint_rotary)?,
            modulated: self.modulations.forward(&silu(&(time + Tensor::cat(&conditions, 0)?)?)?)?,
        })
    }

    /// `[values, 256]`: cosines, then sines, of each value times frequencies from 1 down to 1/10000
    /// (diffusers' `get_timestep_embedding` with `flip_sin_to_cos`), computed in f32 as there.
    fn sinusoid(&self, values: &[f32]) -> Result<Tensor> {
        let half = SINUSOID_WIDTH / 2;
        let frequency = |index: usize| (-(10_000.0_f64.ln() as f32) * index as f32 / half as f32).exp();
        let mut out = Vec::with_capacity(values.len() * SINUSOID_WIDTH);
        for &value in values {
            out.extend((0..half).map(|index| (value * frequency(index)).cos()));
            out.extend((0..half).map(|index| (value * frequency(index)).sin()));
        }
        Tensor::from_vec(out, (values.len(), SINUSOID_WIDTH), &self.device)?.to_dtype(self.dtype)
    }
}

/// A noise level as the model is told it: the scheduler multiplies by 1000, the pipeline divides, the model multiplies
/// again, each in f32.
fn model_time(sigma: f32) -> f32 {
    sigma * 1000.0 / 1000.0 * 1000.0
}
