//! The linear layers of blocks, in full or in eight bits. In eight bits, what comes before a layer is computed and rounded in
//! one go, so each layer is told what that is.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::linear::Linear;
use super::modulation::Modulation;
use crate::domain::precision::Precision;
use crate::engine::ops::Segments;
use crate::engine::ops::activation::{beside_gelu_tanh, gelu_tanh};
use crate::engine::ops::linear::Product;
use crate::engine::ops::quantize::{self, Quantized};

/// `x Wᵀ + b`, where the next operation adds `b`.
pub(super) enum BlockLinear {
    /// As the builder gives weights.
    Full(Linear),
    /// In e4m3, a scale for each output.
    Rounded {
        /// `[outputs, inputs]`
        weight: Quantized,
        /// `[outputs]`, in full.
        bias: Tensor,
    },
}

impl BlockLinear {
    /// `weight [outputs, inputs]` and `bias [outputs]`. What is to be rounded comes in full first, and goes when it is: no
    /// more than one layer's weights are held twice.
    pub(super) fn load(inputs: usize, outputs: usize, precision: Precision, vb: &VarBuilder) -> Result<Self> {
        match precision {
            Precision::Full => Linear::load(inputs, outputs, vb).map(Self::Full),
            Precision::Fp8 => Ok(Self::Rounded {
                weight: Quantized::of(&vb.get((outputs, inputs), "weight")?)?,
                bias: vb.get(outputs, "bias")?,
            }),
        }
    }

    /// The layer in full, where it is.
    pub(super) fn in_full(&self) -> Option<&Linear> {
        match self {
            Self::Full(linear) => Some(linear),
            Self::Rounded { .. } => None,
        }
    }

    /// `x [rows, inputs]` -> `[rows, outputs]`.
    pub(super) fn product(&self, x: &Tensor) -> Result<Product<'_>> {
        match self {
            Self::Full(linear) => linear.product(x),
            Self::Rounded { weight, bias } => quantize::product(&Quantized::of(x)?, weight, bias),
        }
    }

    /// The same of `x` normalised and modulated.
    pub(super) fn normed_product(&self, x: &Tensor, by: &Modulation, segments: &Segments) -> Result<Product<'_>> {
        match self {
            Self::Full(linear) => linear.product(&by.normalize(x, segments)?),
            Self::Rounded { weight, bias } => quantize::product(&by.normalize_rounded(x, segments)?, weight, bias),
        }
    }

    /// The same of `gelu_tanh(right)`, beside `left` if there is one.
    pub(super) fn gelu_product(&self, left: Option<&Tensor>, right: &Product) -> Result<Product<'_>> {
        match (self, left) {
            (Self::Full(linear), Some(left)) => linear.product(&beside_gelu_tanh(left, right)?),
            (Self::Full(linear), None) => linear.product(&gelu_tanh(right)?),
            (Self::Rounded { weight, bias }, _) => {
                quantize::product(&Quantized::of_gelu_tanh(left, right)?, weight, bias)
            }
        }
    }
}

/// The feed-forward part: two layers, and GELU between them.
pub(super) struct FeedForward {
    first: BlockLinear,
    second: BlockLinear,
}

impl FeedForward {
    /// From `width` to `inner` and back.
    pub(super) fn load(width: usize, inner: usize, precision: Precision, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            first: BlockLinear::load(width, inner, precision, &vb.pp("0"))?,
            second: BlockLinear::load(inner, width, precision, &vb.pp("2"))?,
        })
    }

    /// Of `x [rows, width]`, normalised and modulated.
    pub(super) fn normed_product(&self, x: &Tensor, by: &Modulation, segments: &Segments) -> Result<Product<'_>> {
        match &self.first {
            BlockLinear::Full(first) => self.second.product(&first.gelu(&by.normalize(x, segments)?)?),
            BlockLinear::Rounded { .. } => self.second.gelu_product(None, &self.first.normed_product(x, by, segments)?),
        }
    }
}
