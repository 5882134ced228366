//! What a linear layer reads: rows, or an operation whose result nothing else needs. A kind of storage that quantizes its
//! input computes and quantizes in one pass.

use std::borrow::Cow;

use candle_core::{Result, Tensor};

use crate::engine::ops::Segments;
use crate::engine::ops::activation::{beside_gelu_tanh, gelu_tanh};
use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::ops::modulation::modulated_layer_norm;
use crate::engine::ops::quantize::Quantized;

/// The input `[rows, inputs]` of a linear layer.
pub(crate) enum Input<'a> {
    /// The rows themselves.
    Rows(&'a Tensor),
    /// [`modulated_layer_norm`] of `x [rows, inputs]`; `shift` and `scale` are `[sequences, inputs]`.
    ModulatedLayerNorm { x: &'a Tensor, shift: &'a Tensor, scale: &'a Tensor, segments: &'a Segments },
    /// [`gelu_tanh`] of `right`, beside `left` if there is one.
    GeluTanh { left: Option<&'a Tensor>, right: &'a MatrixProduct<'a> },
}

impl Input<'_> {
    /// The rows, in the precision of what they are made of.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn computed(&self) -> Result<Cow<'_, Tensor>> {
        match self {
            Self::Rows(x) => Ok(Cow::Borrowed(*x)),
            Self::ModulatedLayerNorm { x, shift, scale, segments } => {
                modulated_layer_norm(x, shift, scale, segments).map(Cow::Owned)
            }
            Self::GeluTanh { left: Some(left), right } => beside_gelu_tanh(left, right).map(Cow::Owned),
            Self::GeluTanh { left: None, right } => gelu_tanh(right).map(Cow::Owned),
        }
    }

    /// The rows in e4m3, a scale for each.
    ///
    /// # Errors
    /// As [`Self::computed`].
    pub(super) fn quantized(&self) -> Result<Quantized> {
        match self {
            Self::Rows(x) => Quantized::of(x),
            Self::ModulatedLayerNorm { x, shift, scale, segments } => {
                Quantized::of_layer_norm(x, shift, scale, segments)
            }
            Self::GeluTanh { left, right } => Quantized::of_gelu_tanh(*left, right),
        }
    }
}
