//! The modulation of all blocks, from one product in each step.
//!
//! In the checkpoint every block brings a layer of its own for it, from the same input. Each has as many weights as a third
//! of the block's attention, and one row for each sequence to multiply: it takes as long as the weights are read, and one
//! product reads them as fast as the memory gives them.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::engine::loader::config::TransformerConfig;
use crate::engine::ops::Segments;
use crate::engine::ops::linear::{Product, linear};
use crate::engine::ops::modulation::{gated_residual, modulated_layer_norm};
use crate::engine::ops::quantize::Quantized;

/// Parts of a layer in the checkpoint, each as wide as the stream: for either half of a double block two triples of shift,
/// scale and gate; for a single block one; for the final layer shift and scale.
pub(super) const HALF_PARTS: usize = 6;
pub(super) const SINGLE_PARTS: usize = 3;
pub(super) const FINAL_PARTS: usize = 2;

/// The layers of all blocks as one.
pub(super) struct Modulations {
    /// `[parts × hidden, hidden]`
    weight: Tensor,
    /// `[parts × hidden]`
    bias: Tensor,
    hidden: usize,
    /// Parts that have been taken in.
    taken: usize,
}

impl Modulations {
    /// Room for the layers of all blocks.
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size();
        let parts = 2 * HALF_PARTS * config.num_layers + SINGLE_PARTS * config.num_single_layers + FINAL_PARTS;
        Ok(Self {
            weight: Tensor::zeros((parts * hidden, hidden), vb.dtype(), vb.device())?,
            bias: Tensor::zeros(parts * hidden, vb.dtype(), vb.device())?,
            hidden,
            taken: 0,
        })
    }

    /// Takes in a layer of so many parts, and says which is its first. Never is more than one layer held twice.
    pub(super) fn take(&mut self, parts: usize, vb: &VarBuilder) -> Result<usize> {
        let (first, rows) = (self.taken, parts * self.hidden);
        self.weight.slice_set(&vb.get((rows, self.hidden), "weight")?, 0, first * self.hidden)?;
        self.bias.slice_set(&vb.get(rows, "bias")?, 0, first * self.hidden)?;
        self.taken += parts;
        Ok(first)
    }

    /// `silu(condition) [sequences, hidden]` -> all parts for each sequence.
    pub(super) fn forward(&self, condition: &Tensor) -> Result<Modulated> {
        Ok(Modulated { output: linear(condition, &self.weight, Some(&self.bias))?, hidden: self.hidden })
    }
}

/// What all blocks are modulated with in one step.
pub(super) struct Modulated {
    /// `[sequences, parts × hidden]`
    output: Tensor,
    hidden: usize,
}

impl Modulated {
    /// One part, `[sequences, hidden]`.
    pub(super) fn part(&self, index: usize) -> Result<Tensor> {
        self.output.narrow(1, index * self.hidden, self.hidden)
    }

    /// The three from `first` on.
    pub(super) fn triple(&self, first: usize) -> Result<Modulation> {
        Ok(Modulation { shift: self.part(first)?, scale: self.part(first + 1)?, gate: self.part(first + 2)? })
    }
}

/// Shift, scale and gate of one modulated part, `[sequences, hidden]` each.
pub(super) struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    pub(super) fn normalize(&self, x: &Tensor, segments: &Segments) -> Result<Tensor> {
        modulated_layer_norm(x, &self.shift, &self.scale, segments)
    }

    /// [`Self::normalize`], rounded to eight bits.
    pub(super) fn normalize_rounded(&self, x: &Tensor, segments: &Segments) -> Result<Quantized> {
        Quantized::of_layer_norm(x, &self.shift, &self.scale, segments)
    }

    pub(super) fn add(&self, x: &Tensor, y: &Product, segments: &Segments) -> Result<Tensor> {
        gated_residual(x, y, &self.gate, segments)
    }
}
