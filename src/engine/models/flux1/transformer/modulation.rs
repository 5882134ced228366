//! The modulation of all blocks, from one linear layer, or, where blocks are read for each step, from one after the other.
//!
//! In the checkpoint every block has a layer of its own for it, with the same input. Each has as many weights as a third
//! of the block's attention, and multiplies one row a sequence, so it takes as long as its weights take to be read. One
//! matrix product reads them at the memory's full rate. They are more than a quarter of the transformer: where it does not
//! stay in memory, they are read once for several steps.

use candle_core::{Result, Tensor};

use super::super::config::TransformerConfig;
use super::blocks::Blocks;
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

/// Copies the layers of all blocks into one, or counts them.
pub(super) struct ModulationsLoader {
    layers: Layers,
    hidden: usize,
    parts_loaded: usize,
}

enum Layers {
    Joined {
        /// `[parts × hidden, hidden]`
        weight: Weight,
        /// `[parts × hidden]`
        bias: Tensor,
        /// Their names, and their outputs.
        modules: Vec<(String, usize)>,
    },
    /// They are read when they are computed.
    Counted,
}

enum Weight {
    /// Allocated as one, so that no more than one layer is held twice.
    Full(Tensor),
    Stored(Vec<Matrix>),
}

impl ModulationsLoader {
    /// Allocates the layers of all blocks.
    pub(super) fn new(config: &TransformerConfig, tensors: &Tensors) -> Result<Self> {
        Self::joining(parts_of_blocks(config) + FINAL_PARTS, config, tensors)
    }

    /// Allocates the layers of all blocks of a model that has no final layer.
    pub(super) fn without_final_layer(config: &TransformerConfig, tensors: &Tensors) -> Result<Self> {
        Self::joining(parts_of_blocks(config), config, tensors)
    }

    fn joining(parts: usize, config: &TransformerConfig, tensors: &Tensors) -> Result<Self> {
        let hidden = config.hidden_size();
        let weight = if tensors.are_stored() {
            Weight::Stored(Vec::new())
        } else {
            Weight::Full(Tensor::zeros((parts * hidden, hidden), tensors.dtype(), tensors.device())?)
        };
        let bias = Tensor::zeros(parts * hidden, tensors.dtype(), tensors.device())?;
        Ok(Self { layers: Layers::Joined { weight, bias, modules: Vec::new() }, hidden, parts_loaded: 0 })
    }

    /// Counts the layers from those of a block on, and loads none.
    pub(super) fn counting(config: &TransformerConfig, block: usize) -> Self {
        Self { layers: Layers::Counted, hidden: config.hidden_size(), parts_loaded: parts_before(config, block) }
    }

    /// Loads a layer of so many parts, and returns the index of its first.
    pub(super) fn load(&mut self, parts: usize, tensors: &Tensors) -> Result<usize> {
        let (first, rows) = (self.parts_loaded, parts * self.hidden);
        if let Layers::Joined { weight, bias, modules } = &mut self.layers {
            match weight {
                Weight::Full(all) => {
                    all.slice_set(&tensors.get((rows, self.hidden), "weight")?, 0, first * self.hidden)?;
                }
                Weight::Stored(all) => all.push(tensors.matrix([rows, self.hidden], "weight")?),
            }
            bias.slice_set(&tensors.get(rows, "bias")?, 0, first * self.hidden)?;
            modules.push((tensors.prefix(), rows));
        }
        self.parts_loaded += parts;
        Ok(first)
    }

    /// All of them, once every block has loaded its own; or, where they were counted, out of `tensors` whenever they are computed.
    ///
    /// # Errors
    /// When they are not equally wide.
    pub(super) fn finish(self, config: &TransformerConfig, tensors: &Tensors) -> Result<Modulations> {
        let hidden = self.hidden;
        let layers = match self.layers {
            Layers::Joined { weight, bias, modules } => {
                let weight = match weight {
                    Weight::Full(all) => Matrix::Full(all),
                    Weight::Stored(all) => Matrix::joined(all)?,
                };
                let device = bias.device().clone();
                Blocks::kept(vec![Linear::of(weight, Some(bias), modules, &device)?])
            }
            Layers::Counted => {
                let (names, tensors) = (names(config), tensors.clone());
                let (count, source) = (names.len(), tensors.clone());
                let read = move |number: usize| {
                    let (name, parts) = &names[number];
                    Linear::load(hidden, parts * hidden, &source.pp(name))
                };
                Blocks::read_by(Box::new(read), count, |_| true, tensors)?
            }
        };
        Ok(Modulations { layers, hidden })
    }
}

/// Parts of all blocks.
fn parts_of_blocks(config: &TransformerConfig) -> usize {
    parts_before(config, config.num_layers + config.num_single_layers)
}

/// Parts of the blocks before one, by its number: those with two streams come first.
fn parts_before(config: &TransformerConfig, block: usize) -> usize {
    let double = block.min(config.num_layers);
    2 * HALF_PARTS * double + SINGLE_PARTS * (block - double)
}

/// The names of all layers, in their order, and their parts.
fn names(config: &TransformerConfig) -> Vec<(String, usize)> {
    let halves = (0..config.num_layers)
        .flat_map(|index| ["img", "txt"].map(|stream| (format!("double_blocks.{index}.{stream}_mod.lin"), HALF_PARTS)));
    let single =
        (0..config.num_single_layers).map(|index| (format!("single_blocks.{index}.modulation.lin"), SINGLE_PARTS));
    halves.chain(single).chain([("final_layer.adaLN_modulation.1".to_owned(), FINAL_PARTS)]).collect()
}

/// The layers of all blocks.
pub(super) struct Modulations {
    /// Side by side from `hidden` to `parts × hidden`: one, or one for each.
    layers: Blocks<Linear>,
    hidden: usize,
}

impl Modulations {
    /// `silu(condition) [rows, hidden]` -> all parts for each row, `[rows, parts × hidden]`, with what adapters change.
    pub(super) fn forward(&self, condition: &Tensor, changes: &Changes) -> Result<Tensor> {
        let mut outputs = Vec::new();
        self.layers.each(|layer| {
            outputs.push(layer.changed(condition, changes)?);
            Ok(())
        })?;
        if let [output] = outputs.as_slice() { Ok(output.clone()) } else { Tensor::cat(&outputs, 1) }
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
    /// Those of some sequences, in this order.
    pub(super) fn of_sequences(&self, sequences: &[usize]) -> Result<Self> {
        let rows = sequences.iter().map(|sequence| self.output.narrow(0, *sequence, 1));
        let rows: Vec<Tensor> = rows.collect::<Result<_>>()?;
        Ok(Self { output: Tensor::cat(&rows, 0)?, hidden: self.hidden })
    }

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
