//! The modulation of all blocks, from one linear layer in each step.
//!
//! In the checkpoint every block has a layer of its own for it, with the same input. Each has as many weights as a third
//! of the block's attention, and multiplies one row a sequence, so it takes as long as its weights take to be read. One
//! matrix product reads them at the memory's full rate.

use candle_core::{Result, Tensor};

use super::super::config::TransformerConfig;
use crate::engine::adapted::Changes;
use crate::engine::checkpoint::{Matrix, Tensors};
use crate::engine::linear::Linear;
use crate::engine::ops::Segments;
use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::ops::modulation::gated_residual;
use crate::engine::storage::Input;

/// Parts of a layer in the checkpoint, each as wide as the stream: for either half of a double block two triples of shift,
/// scale and gate; for a single block one; for the final layer shift and scale.
pub(super) const HALF_PARTS: usize = 6;
pub(super) const SINGLE_PARTS: usize = 3;
pub(super) const FINAL_PARTS: usize = 2;

/// Copies the layers of all blocks into one.
pub(super) struct ModulationsLoader {
    /// `[parts × hidden, hidden]`
    weight: Weight,
    /// `[parts × hidden]`
    bias: Tensor,
    hidden: usize,
    /// The layers that were loaded, and their outputs.
    modules: Vec<(String, usize)>,
}

enum Weight {
    /// Allocated as one, so that no more than one layer is held twice.
    Full(Tensor),
    Stored(Vec<Matrix>),
}

impl ModulationsLoader {
    /// Allocates the layers of all blocks.
    pub(super) fn new(config: &TransformerConfig, tensors: &Tensors) -> Result<Self> {
        let hidden = config.hidden_size();
        let parts = 2 * HALF_PARTS * config.num_layers + SINGLE_PARTS * config.num_single_layers + FINAL_PARTS;
        let weight = if tensors.are_stored() {
            Weight::Stored(Vec::new())
        } else {
            Weight::Full(Tensor::zeros((parts * hidden, hidden), tensors.dtype(), tensors.device())?)
        };
        let bias = Tensor::zeros(parts * hidden, tensors.dtype(), tensors.device())?;
        Ok(Self { weight, bias, hidden, modules: Vec::new() })
    }

    /// Loads a layer of so many parts, and returns the index of its first.
    pub(super) fn load(&mut self, parts: usize, tensors: &Tensors) -> Result<usize> {
        let (start, rows) = (self.modules.iter().map(|(_, rows)| rows).sum::<usize>(), parts * self.hidden);
        match &mut self.weight {
            Weight::Full(all) => {
                all.slice_set(&tensors.get((rows, self.hidden), "weight")?, 0, start)?;
            }
            Weight::Stored(all) => all.push(tensors.matrix([rows, self.hidden], "weight")?),
        }
        self.bias.slice_set(&tensors.get(rows, "bias")?, 0, start)?;
        self.modules.push((tensors.prefix(), rows));
        Ok(start / self.hidden)
    }

    /// All of them, once every block has loaded its own.
    ///
    /// # Errors
    /// When they are not equally wide.
    pub(super) fn finish(self) -> Result<Modulations> {
        let weight = match self.weight {
            Weight::Full(all) => Matrix::Full(all),
            Weight::Stored(all) => Matrix::joined(all)?,
        };
        let device = self.bias.device().clone();
        Ok(Modulations { layer: Linear::of(weight, Some(self.bias), self.modules, &device)?, hidden: self.hidden })
    }
}

/// The layers of all blocks as one.
pub(super) struct Modulations {
    /// From `hidden` to `parts × hidden`.
    layer: Linear,
    hidden: usize,
}

impl Modulations {
    /// `silu(condition) [rows, hidden]` -> all parts for each row, `[rows, parts × hidden]`, with what adapters change.
    pub(super) fn forward(&self, condition: &Tensor, changes: &Changes) -> Result<Tensor> {
        self.layer.changed(condition, changes)
    }

    /// The parts of a step, from a row for each sequence, `[sequences, parts × hidden]`.
    pub(super) fn of_rows(&self, output: Tensor) -> Modulated {
        Modulated { output, hidden: self.hidden }
    }
}

/// The shifts, scales and gates of all blocks in one step.
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
    /// `x`, normalized, scaled and shifted, for a linear layer.
    pub(super) fn normalized<'a>(&'a self, x: &'a Tensor, segments: &'a Segments) -> Input<'a> {
        Input::ModulatedLayerNorm { x, shift: &self.shift, scale: &self.scale, segments }
    }

    /// `x + gate × y`.
    pub(super) fn add(&self, x: &Tensor, y: &MatrixProduct, segments: &Segments) -> Result<Tensor> {
        gated_residual(x, y, &self.gate, segments)
    }
}
