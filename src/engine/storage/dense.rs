//! Weights in full precision: bf16 or f32, as the device computes.

use candle_core::{Result, Tensor};

use crate::engine::ops::linear::{gelu_linear, gelu_linear_into, linear, matrix_product};
use crate::engine::ops::matrix_product::MatrixProduct;

/// A weight matrix `[outputs, inputs]` in full precision.
pub(crate) struct Dense(Tensor);

impl Dense {
    pub(crate) fn new(weight: Tensor) -> Self {
        Self(weight)
    }

    /// The matrix of some of the outputs, from `start` on, in the same memory.
    pub(crate) fn part(&self, start: usize, outputs: usize) -> Result<Self> {
        self.0.narrow(0, start, outputs).map(Self)
    }

    /// `[rows, inputs]` -> `[rows, outputs]`, with the bias.
    pub(crate) fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        linear(x, &self.0, bias)
    }

    /// [`Self::forward`] for an operation that adds the bias itself.
    pub(crate) fn product<'a>(&self, x: &Tensor, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
        matrix_product(x, &self.0, bias)
    }

    /// GELU of [`Self::forward`].
    pub(crate) fn gelu(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        gelu_linear(x, &self.0, bias)
    }

    /// [`Self::gelu`] into the columns of `wide` from `start` on.
    pub(crate) fn gelu_into(&self, wide: &Tensor, start: usize, x: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        gelu_linear_into(wide, start, x, &self.0, bias)
    }
}
