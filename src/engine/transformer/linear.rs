//! Linear layers in full; `block_linear.rs` has those that may be kept in eight bits.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::engine::ops::linear::{Product, gelu_linear, gelu_linear_into, linear, product};

/// `x Wᵀ + b`.
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `weight [outputs, inputs]` and `bias [outputs]`, in the builder's dtype.
    pub(super) fn load(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: vb.get(outputs, "bias")? })
    }

    /// The layer of some of the outputs, from `start` on: the weights are these.
    pub(super) fn part(&self, start: usize, outputs: usize) -> Result<Self> {
        Ok(Self { weight: self.weight.narrow(0, start, outputs)?, bias: self.bias.narrow(0, start, outputs)? })
    }

    /// `[rows, inputs]` -> `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    /// [`Self::forward`] through GELU.
    pub(super) fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        gelu_linear(x, &self.weight, &self.bias)
    }

    /// [`Self::gelu`] into the columns of `wide` from `start` on.
    pub(super) fn gelu_into(&self, wide: &Tensor, start: usize, x: &Tensor) -> Result<()> {
        gelu_linear_into(wide, start, x, &self.weight, &self.bias)
    }

    /// [`Self::forward`] for an operation that adds the bias itself.
    pub(super) fn product(&self, x: &Tensor) -> Result<Product<'_>> {
        product(x, &self.weight, &self.bias)
    }
}

/// Two linear layers with an activation between them.
pub(super) struct Mlp {
    first: Linear,
    second: Linear,
}

impl Mlp {
    /// `names` are those of the two layers.
    pub(super) fn load(inputs: usize, inner: usize, outputs: usize, names: [&str; 2], vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            first: Linear::load(inputs, inner, &vb.pp(names[0]))?,
            second: Linear::load(inner, outputs, &vb.pp(names[1]))?,
        })
    }

    /// `[rows, inputs]` -> `[rows, outputs]`.
    pub(super) fn forward(&self, x: &Tensor, activation: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.second.forward(&activation(&self.first.forward(x)?)?)
    }
}
