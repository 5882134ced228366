//! The autoencoder's decoder: latents to pixels.
//!
//! Follows `Decoder` in the reference implementation's `autoencoder.py` (black-forest-labs/flux), whose tensor names it
//! uses.
//!
//! A large image is decoded in strips of rows from its last upsamplings on, where almost all of its memory is: same layers, same
//! statistics, and on the CPU the same bits.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::super::config::VaeConfig;
use super::blocks::{Attention, EPSILON, Resnet, Source, convolution};
use super::strips::Strips;
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::GroupNorm;

/// Rows of a strip at the image's own size. With the rows that border it these are two tiles of the CUDA kernels.
pub(crate) const STRIP_ROWS: usize = 28;

/// The upsamplings from which on an image is in strips: the last ones. What is before them takes less than they do.
pub(crate) const UPSAMPLINGS_IN_STRIPS: usize = 2;

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
    /// Maximum pixels of an image that is not decoded in strips.
    whole_pixels_max: usize,
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
            whole_pixels_max: usize::MAX,
        })
    }

    /// The decoder, which decodes images of more than so many pixels in strips.
    #[must_use]
    pub(crate) fn with_whole_pixels_max(self, whole_pixels_max: usize) -> Self {
        Self { whole_pixels_max, ..self }
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
        let (_, _, rows, columns) = latents.dims4()?;
        let pixels = (rows * columns) << (2 * self.upsamplings());
        let latents = ((latents / self.scaling_factor)? + self.shift_factor)?;
        let x = Activation::Whole(self.conv_in.forward(&latents.to_dtype(self.dtype)?)?);
        Ok(Decoding { x, parts_done: 0, is_in_strips: pixels > self.whole_pixels_max })
    }

    /// Runs the next part: one block, in strips together with the upsampling before it. `false`: there is none left, only the last
    /// convolution, which [`Self::complete`] runs.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn advance(&self, decoding: Decoding) -> Result<(Decoding, bool)> {
        let mut parts = self.parts().skip(decoding.parts_done);
        let Some(part) = parts.next() else { return Ok((decoding, false)) };
        let Decoding { x, parts_done, is_in_strips } = decoding;
        let (x, parts) = match (x, part, parts.next()) {
            (Activation::Whole(x), Part::Upsample(doubling, left), Some(Part::Resnet(block)))
                if is_in_strips && left <= UPSAMPLINGS_IN_STRIPS =>
            {
                let strips = Strips::cut(&x, STRIP_ROWS >> left)?;
                drop(x);
                (Activation::Strips(block.forward_strips(Source::Doubled(strips, doubling))?), 2)
            }
            (Activation::Strips(x), Part::Upsample(doubling, _), Some(Part::Resnet(block))) => {
                (Activation::Strips(block.forward_strips(Source::Doubled(x, doubling))?), 2)
            }
            (Activation::Strips(x), Part::Resnet(block), _) => {
                (Activation::Strips(block.forward_strips(Source::Held(x))?), 1)
            }
            (Activation::Strips(x), part, _) => (Activation::Whole(part.forward(&x.joined()?)?), 1),
            (Activation::Whole(x), part, _) => (Activation::Whole(part.forward(&x)?), 1),
        };
        Ok((Decoding { x, parts_done: parts_done + parts, is_in_strips }, true))
    }

    /// Runs all parts that are left, and returns the pixels of [`Self::decode`].
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn complete(&self, mut decoding: Decoding) -> Result<Tensor> {
        loop {
            let (advanced, is_left) = self.advance(decoding)?;
            decoding = advanced;
            if !is_left {
                break;
            }
        }
        match decoding.x {
            Activation::Whole(x) => self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.to_dtype(DType::F32),
            Activation::Strips(x) => x.convolved(&self.norm_out, &self.conv_out),
        }
    }

    /// How often the sides are doubled.
    fn upsamplings(&self) -> usize {
        self.levels.iter().filter(|level| level.upsample.is_some()).count()
    }

    /// The blocks between the first convolution and the last, in order.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let (first, attention, second) = &self.middle;
        let middle = [Part::Resnet(first), Part::Attention(attention), Part::Resnet(second)];
        let upsamplings = self.upsamplings();
        let levels = self.levels.iter().enumerate().flat_map(move |(level, Level { blocks, upsample })| {
            let left = upsamplings.saturating_sub(level);
            let upsample = upsample.as_ref().map(|upsample| Part::Upsample(upsample, left));
            blocks.iter().map(Part::Resnet).chain(upsample)
        });
        middle.into_iter().chain(levels)
    }
}

/// An image that is partly decoded.
pub(crate) struct Decoding {
    x: Activation,
    parts_done: usize,
    /// Whether it is in strips from the last upsamplings on.
    is_in_strips: bool,
}

/// The output of the last part that ran: `[1, channels, height, width]`, in the decoder's dtype and the device's memory order.
enum Activation {
    Whole(Tensor),
    Strips(Strips),
}

enum Part<'a> {
    Resnet(&'a Resnet),
    Attention(&'a Attention),
    /// Doubles the sides, with so many upsamplings left, this one included.
    Upsample(&'a Convolution, usize),
}

impl Part<'_> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Resnet(block) => block.forward(x),
            Self::Attention(block) => block.forward(x),
            Self::Upsample(convolution, _) => convolution.forward(x),
        }
    }
}

#[cfg(test)]
mod tests;
