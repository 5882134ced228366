//! The autoencoder's way back: latents to pixels. `encoder.rs` has the way in.
//!
//! Follows `Decoder` in the reference implementation's `autoencoder.py` (black-forest-labs/flux), whose tensor names it
//! uses; the attention in the middle never holds a whole score matrix.

mod encoder;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use super::loader::config::VaeConfig;
use super::ops::attention::attention;
use super::ops::convolution::Convolution;
use super::ops::group_norm::GroupNorm;
use super::ops::linear::linear;
use super::ops::{Segments, channels_first, channels_last};

pub(crate) use encoder::{Encoder, pixels_of};

/// Epsilon of every GroupNorm in the autoencoder.
const EPSILON: f64 = 1e-6;

/// The decoder half, in the builder's dtype; its norms take their statistics in f32.
pub(crate) struct Decoder {
    conv_in: Convolution,
    middle: (Resnet, Attention, Resnet),
    /// From latents to pixels.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Convolution,
    scaling_factor: f64,
    shift_factor: f64,
    dtype: DType,
}

struct Level {
    blocks: Vec<Resnet>,
    upsample: Option<Convolution>,
}

impl Decoder {
    /// Loads the decoder.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let vb = vb.pp("decoder");
        let groups = config.norm_num_groups;
        let widths = &config.block_out_channels;
        let widest = widths[widths.len() - 1];
        let middle = (
            Resnet::load(groups, widest, widest, &vb.pp("mid.block_1"))?,
            Attention::load(groups, widest, &vb.pp("mid.attn_1"))?,
            Resnet::load(groups, widest, widest, &vb.pp("mid.block_2"))?,
        );
        let mut levels = Vec::with_capacity(widths.len());
        let mut inputs = widest;
        for (level, &width) in widths.iter().enumerate().rev() {
            let vb = vb.pp(format!("up.{level}"));
            let mut blocks = Vec::with_capacity(config.layers_per_block + 1);
            for block in 0..=config.layers_per_block {
                blocks.push(Resnet::load(groups, inputs, width, &vb.pp(format!("block.{block}")))?);
                inputs = width;
            }
            let upsample = || Convolution::load_doubling(width, &vb.pp("upsample.conv"));
            let upsample = (level > 0).then(upsample).transpose()?;
            levels.push(Level { blocks, upsample });
        }
        Ok(Self {
            conv_in: convolution(config.latent_channels, widest, &vb.pp("conv_in"))?,
            middle,
            levels,
            norm_out: GroupNorm::load(groups, inputs, EPSILON, &vb.pp("norm_out"))?,
            conv_out: convolution(inputs, config.out_channels, &vb.pp("conv_out"))?,
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor,
            dtype: vb.dtype(),
        })
    }

    /// Latents `[1, channels, height / 8, width / 8]` as the transformer leaves them -> pixels `[1, 3, height, width]`,
    /// about -1 to 1, not clamped. Both f32.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.complete(self.begin(latents)?)
    }

    /// The beginning of [`Self::decode`], for what is then done part by part.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn begin(&self, latents: &Tensor) -> Result<Decoding> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        Ok(Decoding { x: self.conv_in.forward(&latents.to_dtype(self.dtype)?)?, parts_done: 0 })
    }

    /// Does the next part: one block. `false`: there is none, and [`Self::complete`] has little left to do.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn advance(&self, decoding: &mut Decoding) -> Result<bool> {
        let Some(part) = self.parts().nth(decoding.parts_done) else { return Ok(false) };
        decoding.x = part.forward(&decoding.x)?;
        decoding.parts_done += 1;
        Ok(true)
    }

    /// All that is left: the pixels of [`Self::decode`].
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn complete(&self, mut decoding: Decoding) -> Result<Tensor> {
        while self.advance(&mut decoding)? {}
        self.conv_out.forward(&self.norm_out.forward_silu(&decoding.x)?)?.to_dtype(DType::F32)
    }

    /// What stands between the first convolution and the last, in order.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let (first, attention, second) = &self.middle;
        let middle = [Part::Resnet(first), Part::Attention(attention), Part::Resnet(second)];
        let levels = self
            .levels
            .iter()
            .flat_map(|level| level.blocks.iter().map(Part::Resnet).chain(level.upsample.as_ref().map(Part::Upsample)));
        middle.into_iter().chain(levels)
    }
}

/// An image on its way through the decoder.
pub(crate) struct Decoding {
    /// What the last part has left: `[1, channels, height, width]`, in the decoder's dtype; in memory as the device likes it.
    x: Tensor,
    parts_done: usize,
}

enum Part<'a> {
    Resnet(&'a Resnet),
    Attention(&'a Attention),
    /// To twice the size.
    Upsample(&'a Convolution),
}

impl Part<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Resnet(block) => block.forward(x),
            Self::Attention(block) => block.forward(x),
            Self::Upsample(convolution) => convolution.forward(x),
        }
    }
}

/// A 3×3 convolution that keeps the size.
fn convolution(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Convolution> {
    Convolution::load(inputs, outputs, 3, vb)
}

struct Resnet {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    shortcut: Option<Convolution>,
}

impl Resnet {
    fn load(groups: usize, inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let shortcut = || Convolution::load(inputs, outputs, 1, &vb.pp("nin_shortcut"));
        Ok(Self {
            norm1: GroupNorm::load(groups, inputs, EPSILON, &vb.pp("norm1"))?,
            conv1: convolution(inputs, outputs, &vb.pp("conv1"))?,
            norm2: GroupNorm::load(groups, outputs, EPSILON, &vb.pp("norm2"))?,
            conv2: convolution(outputs, outputs, &vb.pp("conv2"))?,
            shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let hidden = self.norm2.forward_silu(&hidden)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_onto(&hidden, &shortcut.forward(x)?),
            None => self.conv2.forward_onto(&hidden, x),
        }
    }
}

/// Single-head attention over all positions. Its 1×1 convolutions are linear layers over the positions.
struct Attention {
    norm: GroupNorm,
    qkv: (Tensor, Tensor),
    out: (Tensor, Tensor),
}

impl Attention {
    fn load(groups: usize, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let pointwise = |name: &str| -> Result<(Tensor, Tensor)> {
            let weight = vb.get((channels, channels, 1, 1), &format!("{name}.weight"))?;
            Ok((weight.reshape((channels, channels))?, vb.get(channels, &format!("{name}.bias"))?))
        };
        let (query, key, value) = (pointwise("q")?, pointwise("k")?, pointwise("v")?);
        Ok(Self {
            norm: GroupNorm::load(groups, channels, EPSILON, &vb.pp("norm"))?,
            qkv: (Tensor::cat(&[query.0, key.0, value.0], 0)?, Tensor::cat(&[query.1, key.1, value.1], 0)?),
            out: pointwise("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let positions = channels_last(&self.norm.forward(x)?)?.reshape((height * width, channels))?;
        let qkv = linear(&positions, &self.qkv.0, Some(&self.qkv.1))?;
        let attended = attention(&qkv, 1, &Segments::from_lengths([height * width]))?;
        let out = linear(&attended, &self.out.0, Some(&self.out.1))?;
        let out = out.reshape((batch, height, width, channels))?;
        // In the order in which `x` stands in memory, so that the sum does.
        if x.is_contiguous() {
            return channels_first(&out)?.contiguous()? + x;
        }
        channels_first(&(out + channels_last(x)?)?)
    }
}

/// Pixels about -1 to 1, `[1, 3, height, width]`, as bytes row by row, each by [`to_byte`]. `None` when any of them is not
/// finite.
///
/// # Errors
/// When the device fails.
pub(crate) fn to_rgb_bytes(pixels: &Tensor) -> Result<Option<Vec<u8>>> {
    // Rearranged where they are: that takes a device next to no time.
    let interleaved = pixels.squeeze(0)?.permute((1, 2, 0))?.contiguous()?.to_device(&Device::Cpu)?;
    let values = interleaved.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if values.par_iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    Ok(Some(values.into_par_iter().map(to_byte).collect()))
}

/// A colour's share, about -1 to 1, as a byte: `round_half_even(255 × clamp(x / 2 + 1 / 2))`, as diffusers rounds.
pub(crate) fn to_byte(value: f32) -> u8 {
    (255.0 * (value / 2.0 + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8
}
