//! The operations that have a kernel of their own on Hopper, by that kernel.

use candle_core::{Result, Tensor};

use super::operation::{Numbers, Operation};
use super::shapes::{
    HEADS, ROWS, WIDTH, attend_to_long_sequence, long_sequence, segments, small_convolution, small_doubled,
    wide_convolution, wide_doubled,
};
use crate::domain::operation_group::OperationGroup::{self, AttentionHopper, ConvolutionHopper, DoubledHopper};
use crate::engine::ops::attention::attention_by;
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::kernel::Kernel;

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    of(
        AttentionHopper,
        "attention",
        |numbers| Ok(vec![numbers.random(4, &[ROWS, 3 * WIDTH])?]),
        |x| attention_by(Kernel::Warpgroup, &x[0], HEADS, &segments()),
    ),
    of(AttentionHopper, "attention of 4608 tokens", long_sequence, |x| attend_to_long_sequence(Kernel::Warpgroup, x)),
    of(ConvolutionHopper, "convolution onto a residual", small_convolution, onto_residual),
    of(ConvolutionHopper, "convolution, 256 to 128 channels", wide_convolution, onto_residual),
    of(DoubledHopper, "convolution, doubled", small_doubled, doubled),
    of(DoubledHopper, "convolution, doubled, 256 channels", wide_doubled, doubled),
];

const fn of(
    group: OperationGroup,
    name: &'static str,
    operands: fn(&Numbers) -> Result<Vec<Tensor>>,
    op: fn(&[Tensor]) -> Result<Tensor>,
) -> Operation {
    Operation { group, name, operands, op, roundings: 1.0 }
}

fn onto_residual(x: &[Tensor]) -> Result<Tensor> {
    Convolution::by(Kernel::Warpgroup, &x[1], &x[2], false)?.forward_onto(&x[0], &x[3])
}

fn doubled(x: &[Tensor]) -> Result<Tensor> {
    Convolution::by(Kernel::Warpgroup, &x[1], &x[2], true)?.forward(&x[0])
}
