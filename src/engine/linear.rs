//! `x Wᵀ + b`: the one type that layers are made of. Knows what comes before and after the matrix product, and leaves the
//! product to [`Stored`].

use candle_core::{Device, Result, Tensor};

use super::checkpoint::{Matrix, Tensors};
use super::ops::activation::gelu_tanh;
use super::ops::matrix_product::MatrixProduct;
use super::storage::{Dense, Input, Stored};
use crate::domain::precision::Precision;

/// A linear layer.
pub(crate) struct Linear {
    /// `[outputs, inputs]`
    weight: Stored,
    /// `[outputs]`, in full precision.
    bias: Option<Tensor>,
}

impl Linear {
    /// From `weight [outputs, inputs]` and `bias [outputs]`, in full precision.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Stored::Dense(Dense::new(weight)), bias }
    }

    /// From a weight `[outputs, inputs]` as it was given, and `bias [outputs]` in full precision, on a device.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn of(weight: Matrix, bias: Option<Tensor>, device: &Device) -> Result<Self> {
        Ok(Self { weight: Stored::of(weight, device)?, bias })
    }

    /// `weight` and `bias` of a component, as it is kept.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(inputs: usize, outputs: usize, tensors: &Tensors) -> Result<Self> {
        Self::load_in(Precision::Full, inputs, outputs, tensors)
    }

    /// [`Self::load`], with the weight in `precision`.
    ///
    /// # Errors
    /// As [`Self::load`], or when the device cannot quantize.
    pub(crate) fn load_in(precision: Precision, inputs: usize, outputs: usize, tensors: &Tensors) -> Result<Self> {
        let weight = Stored::load([outputs, inputs], precision, tensors)?;
        Ok(Self { weight, bias: Some(tensors.get(outputs, "bias")?) })
    }

    /// The layer of some of the outputs, from `start` on, with the same weights. `None` where they are not dense.
    ///
    /// # Errors
    /// When there are not so many.
    pub(crate) fn part(&self, start: usize, outputs: usize) -> Result<Option<Self>> {
        let Some(dense) = self.weight.dense() else { return Ok(None) };
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, start, outputs)).transpose()?;
        Ok(Some(Self { weight: Stored::Dense(dense.part(start, outputs)?), bias }))
    }

    /// Whether GELU can be part of the matrix product: the weight is dense.
    pub(crate) fn has_gelu_epilogue(&self) -> bool {
        self.weight.dense().is_some()
    }

    /// `[rows, inputs]` -> `[rows, outputs]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.weight.dense() {
            Some(dense) => dense.forward(x, self.bias.as_ref()),
            None => self.product(&Input::Rows(x))?.biased(),
        }
    }

    /// [`Self::forward`] of an input for an operation that adds the bias itself.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn product(&self, input: &Input) -> Result<MatrixProduct<'_>> {
        self.weight.product(input, self.bias.as_ref())
    }

    /// GELU of [`Self::forward`] of an input.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn gelu(&self, input: &Input) -> Result<Tensor> {
        match self.weight.dense() {
            Some(dense) => dense.gelu(input.computed()?.as_ref(), self.bias.as_ref()),
            None => gelu_tanh(&self.product(input)?),
        }
    }

    /// [`Self::gelu`] of `x` into the columns of `wide` from `start` on.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn gelu_into(&self, wide: &Tensor, start: usize, x: &Tensor) -> Result<()> {
        match self.weight.dense() {
            Some(dense) => dense.gelu_into(wide, start, x, self.bias.as_ref()),
            None => wide.slice_set(&gelu_tanh(&self.product(&Input::Rows(x))?)?, 1, start),
        }
    }
}
