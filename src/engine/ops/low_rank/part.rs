//! One change of low rank.

use std::ops::Range;

use candle_core::Tensor;

/// Maximum changes in one launch of the kernels; `PARTS_MAX` in low_rank.cu.
pub(in crate::engine::ops) const PARTS_MAX: usize = 48;

/// A change of some columns of some rows: `scale × (x downᵀ) upᵀ` is added to them.
#[derive(Debug, Clone)]
pub(crate) struct LowRankPart<'a> {
    /// The rows of a stream, those of `x` and of what is changed. Parts have the same rows or none in common.
    pub(crate) rows: Range<usize>,
    /// The columns that are changed.
    pub(crate) columns: Range<usize>,
    /// `[rank, inputs]`
    pub(crate) down: &'a Tensor,
    /// `[columns, rank]`
    pub(crate) up: &'a Tensor,
    pub(crate) scale: f32,
}

impl LowRankPart<'_> {
    /// Its rank, by the shape of `down`.
    pub(in crate::engine::ops) fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or_default()
    }
}
