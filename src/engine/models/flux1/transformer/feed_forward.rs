//! The feed-forward part of a block.

use candle_core::{Result, Tensor};

use super::modulation::Modulation;
use crate::domain::precision::Precision;
use crate::engine::adapted::Changes;
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;
use crate::engine::ops::Segments;
use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::storage::Input;

/// Two linear layers with GELU between them.
pub(super) struct FeedForward {
    first: Linear,
    second: Linear,
}

impl FeedForward {
    /// From `width` to `inner` and back.
    pub(super) fn load(width: usize, inner: usize, precision: Precision, vb: &Tensors) -> Result<Self> {
        Ok(Self {
            first: Linear::load_in(precision, width, inner, &vb.pp("0"))?,
            second: Linear::load_in(precision, inner, width, &vb.pp("2"))?,
        })
    }

    /// Of `x [rows, width]`, normalized and modulated.
    pub(super) fn product(
        &self,
        x: &Tensor,
        by: &Modulation,
        (segments, changes): (&Segments, &Changes),
    ) -> Result<MatrixProduct<'_>> {
        let x = by.normalized(x, segments);
        if self.first.has_gelu_epilogue() {
            return self.second.product(&Input::Rows(&self.first.gelu(&x, changes)?), changes);
        }
        // GELU is computed where its result is quantized.
        self.second.product(&Input::GeluTanh { left: None, right: &self.first.product(&x, changes)? }, changes)
    }
}
