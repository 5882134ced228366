//! The linear layers of a step of FLUX.1, in their own widths: a library multiplies, and its algorithm depends on the shape. Few
//! rows, so that the CPU takes no minutes.

use candle_core::{Result, Tensor};

use super::operation::{Numbers, Operation};
use crate::domain::operation_group::OperationGroup::Products;
use crate::engine::ops::attention::attention_into;
use crate::engine::ops::linear::{gelu_linear, gelu_linear_into, linear};
use crate::engine::ops::low_rank::{LowRankPart, low_rank_add};
use crate::engine::ops::{Segments, unwritten};

const HEADS: usize = 24;
const HIDDEN: usize = 3072;
const QKV: usize = 3 * HIDDEN;
const MLP: usize = 4 * HIDDEN;

/// Neither a multiple of a tile nor even.
const ROWS: usize = 77;

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    of("linear, 3072 to 9216", |numbers| layer(numbers, [ROWS, HIDDEN, QKV]), plain),
    of("linear, 3072 to 9216, one row", |numbers| layer(numbers, [1, HIDDEN, QKV]), plain),
    of(
        "linear, 3072 to 12288, GELU",
        |numbers| layer(numbers, [ROWS, HIDDEN, MLP]),
        |x| gelu_linear(&x[0], &x[1], Some(&x[2])),
    ),
    of("linear, 12288 to 3072", |numbers| layer(numbers, [ROWS, MLP, HIDDEN]), plain),
    of("linear, 15360 to 3072", |numbers| layer(numbers, [ROWS, HIDDEN + MLP, HIDDEN]), plain),
    of("parts of a layer, 3072 to 21504, beside attention", side_by_side, beside_attention),
    Operation {
        // What is between the two products is rounded as well.
        roundings: 2.0,
        ..of(
            "a change of rank 32, 15360 to 3072",
            |numbers| {
                let inputs = HIDDEN + MLP;
                let (out, x) = (numbers.random(73, &[ROWS, HIDDEN])?, numbers.random(74, &[ROWS, inputs])?);
                Ok(vec![out, x, numbers.weight(75, &[32, inputs])?, numbers.weight(76, &[HIDDEN, 32])?])
            },
            |x| {
                let out = x[0].copy()?;
                let (rows, columns) = (0..ROWS, 0..HIDDEN);
                low_rank_add(&out, &x[1], &[LowRankPart { rows, columns, down: &x[2], up: &x[3], scale: 1.0 }])?;
                Ok(out)
            },
        )
    },
];

const fn of(
    name: &'static str,
    operands: fn(&Numbers) -> Result<Vec<Tensor>>,
    op: fn(&[Tensor]) -> Result<Tensor>,
) -> Operation {
    Operation { group: Products, name, operands, op, roundings: 1.0 }
}

/// Rows, weight and bias of a layer.
fn layer(numbers: &Numbers, [rows, inputs, outputs]: [usize; 3]) -> Result<Vec<Tensor>> {
    let (x, weight) = (numbers.random(70, &[rows, inputs])?, numbers.weight(71, &[outputs, inputs])?);
    Ok(vec![x, weight, numbers.random(72, &[outputs])?])
}

fn plain(x: &[Tensor]) -> Result<Tensor> {
    linear(&x[0], &x[1], Some(&x[2]))
}

/// The rows that a single block normalizes, and its first layer.
fn side_by_side(numbers: &Numbers) -> Result<Vec<Tensor>> {
    layer(numbers, [ROWS, HIDDEN, QKV + MLP])
}

/// As a single block does: both parts of the layer are in one weight, and attention and GELU are written side by side.
fn beside_attention(x: &[Tensor]) -> Result<Tensor> {
    let part = |tensor: &Tensor, start, outputs| tensor.narrow(0, start, outputs);
    let qkv = linear(&x[0], &part(&x[1], 0, QKV)?, Some(&part(&x[2], 0, QKV)?))?;
    let both = unwritten(ROWS, HIDDEN + MLP, &x[0])?;
    attention_into(&both, 0, &qkv, HEADS, &Segments::from_lengths([ROWS]))?;
    gelu_linear_into(&both, HIDDEN, &x[0], &part(&x[1], QKV, MLP)?, Some(&part(&x[2], QKV, MLP)?))?;
    Ok(both)
}
