//! The blocks that decoder and encoder are made of.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::strips::{Bordered, EachStrip, Strips, bordered, each_convolved, moments};
use crate::engine::linear::Linear;
use crate::engine::ops::attention::attention;
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::GroupNorm;
use crate::engine::ops::{Segments, channels_first, channels_last};

/// Epsilon of every GroupNorm in the autoencoder.
pub(super) const EPSILON: f64 = 1e-6;

/// A 3×3 convolution that keeps the size.
pub(super) fn convolution(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Convolution> {
    Convolution::load(inputs, outputs, 3, vb)
}

/// A residual block of two convolutions.
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    shortcut: Option<Convolution>,
}

impl Resnet {
    pub(super) fn load(groups: usize, inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        let shortcut = || Convolution::load(inputs, outputs, 1, &vb.pp("nin_shortcut"));
        Ok(Self {
            norm1: GroupNorm::load(groups, inputs, EPSILON, &vb.pp("norm1"))?,
            conv1: convolution(inputs, outputs, &vb.pp("conv1"))?,
            norm2: GroupNorm::load(groups, outputs, EPSILON, &vb.pp("norm2"))?,
            conv2: convolution(outputs, outputs, &vb.pp("conv2"))?,
            shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = normed_convolution(&self.norm1, &self.conv1, x)?;
        let normed = self.norm2.forward_silu(&hidden)?;
        // At the full size, each of these takes a fifth of what an image takes.
        drop(hidden);
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_onto(&normed, &shortcut.forward(x)?),
            None => self.conv2.forward_onto(&normed, x),
        }
    }

    /// [`Self::forward`] of an image in strips: no strip is held longer than it is needed, and of two layers' outputs each is held
    /// once.
    pub(super) fn forward_strips(&self, x: Source) -> Result<Strips> {
        let scales = self.norm1.scales(&moments(x.each(), &self.norm1)?)?;
        let (mut hidden, mut statistics, mut residuals) = (Vec::new(), Vec::new(), Vec::new());
        for strip in bordered(x.released()) {
            let Bordered { strip, seen, rows } = strip?;
            let normed = self.norm1.forward_silu_by(&seen, &scales)?;
            drop(seen);
            let out = self.conv1.forward_rows(&normed, &rows, None)?;
            statistics.push(self.norm2.moments(&out)?);
            hidden.push(out);
            residuals.push(match &self.shortcut {
                Some(shortcut) => shortcut.forward(&strip)?,
                None => strip,
            });
        }
        let scales = self.norm2.scales(&statistics)?;
        let hidden = hidden.into_iter().collect::<Strips>();
        let strips = bordered(hidden.released()).zip(residuals).map(|(strip, residual)| {
            let Bordered { seen, rows, .. } = strip?;
            let normed = self.norm2.forward_silu_by(&seen, &scales)?;
            drop(seen);
            self.conv2.forward_rows(&normed, &rows, Some(&residual))
        });
        strips.collect()
    }
}

/// A convolution of the norm and SiLU of an image; what is between them is freed.
fn normed_convolution(norm: &GroupNorm, convolution: &Convolution, x: &Tensor) -> Result<Tensor> {
    convolution.forward(&norm.forward_silu(x)?)
}

/// The strips that a block reads.
pub(super) enum Source<'a> {
    Held(Strips),
    /// The outputs of a convolution that doubles these strips' sides. They would take four times the memory, so they are computed
    /// whenever they are read.
    Doubled(Strips, &'a Convolution),
}

impl<'a> Source<'a> {
    fn each(&self) -> EachStrip<'_> {
        match self {
            Self::Held(strips) => strips.each(),
            Self::Doubled(strips, convolution) => each_convolved(strips.each(), convolution),
        }
    }

    fn released(self) -> EachStrip<'a> {
        match self {
            Self::Held(strips) => strips.released(),
            Self::Doubled(strips, convolution) => each_convolved(strips.released(), convolution),
        }
    }
}

/// Single-head attention over all positions, which never holds a whole score matrix. Its 1×1 convolutions are linear layers
/// over the positions.
pub(super) struct Attention {
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
}

impl Attention {
    pub(super) fn load(groups: usize, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let pointwise = |name: &str| -> Result<(Tensor, Tensor)> {
            let weight = vb.get((channels, channels, 1, 1), &format!("{name}.weight"))?;
            Ok((weight.reshape((channels, channels))?, vb.get(channels, &format!("{name}.bias"))?))
        };
        let (query, key, value) = (pointwise("q")?, pointwise("k")?, pointwise("v")?);
        Ok(Self {
            norm: GroupNorm::load(groups, channels, EPSILON, &vb.pp("norm"))?,
            qkv: Linear::new(
                Tensor::cat(&[query.0, key.0, value.0], 0)?,
                Some(Tensor::cat(&[query.1, key.1, value.1], 0)?),
            ),
            out: {
                let (weight, bias) = pointwise("proj_out")?;
                Linear::new(weight, Some(bias))
            },
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let positions = channels_last(&self.norm.forward(x)?)?.reshape((height * width, channels))?;
        let qkv = self.qkv.forward(&positions)?;
        let attended = attention(&qkv, 1, &Segments::from_lengths([height * width]))?;
        let out = self.out.forward(&attended)?.reshape((batch, height, width, channels))?;
        // In the memory order of `x`, so that the sum has it as well.
        if x.is_contiguous() {
            return channels_first(&out)?.contiguous()? + x;
        }
        channels_first(&(out + channels_last(x)?)?)
    }
}
