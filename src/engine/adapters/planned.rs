//! What an adapter changes of a module, as tensors of its file that were not read yet.

use std::ops::Range;

/// A change of some outputs of a module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// The module's name in the file.
    pub(super) path: String,
    /// The module, by its number.
    pub(super) module: usize,
    /// The outputs.
    pub(super) rows: Range<usize>,
    /// The inputs: those of the module, twice as many, or without those that are joined; one where the module is a norm.
    pub(super) columns: usize,
    /// Whether the file has the halves of the outputs in the other order.
    pub(super) are_halves_swapped: bool,
    pub(super) weight: Option<PlannedWeight>,
    /// DoRA's norms, by their tensor.
    pub(super) magnitude: Option<(String, Axis)>,
    /// Changes of the bias, by their tensors, with their factors.
    pub(super) biases: Vec<(String, f32)>,
}

/// A change of a matrix or a norm.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlannedWeight {
    pub(super) algebra: Algebra,
    pub(super) factor: f32,
}

/// How a change is made of tensors.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Algebra {
    LowRank(Factors),
    /// LoHa: two of low rank, multiplied number by number.
    Hadamard([Factors; 2]),
    /// LoKr: the Kronecker product of two matrices.
    Kronecker([KroneckerFactor; 2]),
    Difference(String),
    Replacement(String),
}

/// Two tensors whose product is a matrix.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Factors {
    /// `[rank, columns]`
    pub(super) down: String,
    /// `[rows, rank]`
    pub(super) up: String,
    pub(super) rank: usize,
}

/// A matrix of a Kronecker product.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KroneckerFactor {
    pub(super) numbers: KroneckerNumbers,
    pub(super) shape: [usize; 2],
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum KroneckerNumbers {
    Matrix(String),
    Product(Factors),
}

/// Whose norms DoRA sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Of each output: over its row.
    Rows,
    /// Of each input: over its column.
    Columns,
}

impl Planned {
    /// The ranks of its factors.
    pub(super) fn ranks(&self) -> Vec<usize> {
        match self.weight.as_ref().map(|weight| &weight.algebra) {
            Some(Algebra::LowRank(factors)) => vec![factors.rank],
            Some(Algebra::Hadamard(factors)) => factors.iter().map(|factors| factors.rank).collect(),
            Some(Algebra::Kronecker(factors)) => {
                let rank = |factor: &KroneckerFactor| match &factor.numbers {
                    KroneckerNumbers::Matrix(_) => None,
                    KroneckerNumbers::Product(factors) => Some(factors.rank),
                };
                factors.iter().filter_map(rank).collect()
            }
            Some(Algebra::Difference(_) | Algebra::Replacement(_)) | None => Vec::new(),
        }
    }
}
