//! The autoencoder's decoder: latents to pixels.
//!
//! Follows `Decoder` in the reference implementation's `autoencoder.py` (black-forest-labs/flux), whose tensor names it
//! uses.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::super::config::VaeConfig;
use super::blocks::{Attention, EPSILON, Resnet, convolution};
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::GroupNorm;

/// The decoder, in the builder's dtype; its norms take their statistics in f32.
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

    /// Starts to decode part by part.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn begin(&self, latents: &Tensor) -> Result<Decoding> {
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        Ok(Decoding { x: self.conv_in.forward(&latents.to_dtype(self.dtype)?)?, parts_done: 0 })
    }

    /// Runs the next part: one block. `false`: there is none left, only the last convolution, which [`Self::complete`] runs.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn advance(&self, decoding: &mut Decoding) -> Result<bool> {
        let Some(part) = self.parts().nth(decoding.parts_done) else { return Ok(false) };
        decoding.x = part.forward(&decoding.x)?;
        decoding.parts_done += 1;
        Ok(true)
    }

    /// Runs all parts that are left, and returns the pixels of [`Self::decode`].
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn complete(&self, mut decoding: Decoding) -> Result<Tensor> {
        while self.advance(&mut decoding)? {}
        self.conv_out.forward(&self.norm_out.forward_silu(&decoding.x)?)?.to_dtype(DType::F32)
    }

    /// The blocks between the first convolution and the last, in order.
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

/// An image that is partly decoded.
pub(crate) struct Decoding {
    /// The output of the last part that ran: `[1, channels, height, width]`, in the decoder's dtype and the device's memory
    /// order.
    x: Tensor,
    parts_done: usize,
}

enum Part<'a> {
    Resnet(&'a Resnet),
    Attention(&'a Attention),
    /// Doubles the sides.
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
