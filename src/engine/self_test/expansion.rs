//! Expansion of weights that are kept as their file stores them, from each format.

use candle_core::{Result, Tensor};

use super::operation::{Numbers, Operation};
use crate::domain::operation_group::OperationGroup::Portable;
use crate::engine::blocks::{BlockType, Coding};
use crate::engine::ops::expand::{PackedRows, expanded};

/// More numbers than one block of threads expands, and not a multiple of that.
const ROWS: usize = 5;
const COLUMNS: usize = 768;
const NUMBERS: usize = ROWS * COLUMNS;

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    of("expansion of F32", |x| blocks(BlockType::F32, x)),
    of("expansion of F16", |x| blocks(BlockType::F16, x)),
    of("expansion of BF16", |x| blocks(BlockType::Bf16, x)),
    of("expansion of e4m3", |x| blocks(BlockType::F8E4M3, x)),
    of("expansion of e5m2", |x| blocks(BlockType::F8E5M2, x)),
    of("expansion of Q4_0", |x| blocks(BlockType::Q4_0, x)),
    of("expansion of Q4_1", |x| blocks(BlockType::Q4_1, x)),
    of("expansion of Q5_0", |x| blocks(BlockType::Q5_0, x)),
    of("expansion of Q5_1", |x| blocks(BlockType::Q5_1, x)),
    of("expansion of Q8_0", |x| blocks(BlockType::Q8_0, x)),
    of("expansion of Q2_K", |x| blocks(BlockType::Q2K, x)),
    of("expansion of Q3_K", |x| blocks(BlockType::Q3K, x)),
    of("expansion of Q4_K", |x| blocks(BlockType::Q4K, x)),
    of("expansion of Q5_K", |x| blocks(BlockType::Q5K, x)),
    of("expansion of Q6_K", |x| blocks(BlockType::Q6K, x)),
    of("expansion of IQ4_NL", |x| blocks(BlockType::Iq4Nl, x)),
    of("expansion of IQ4_XS", |x| blocks(BlockType::Iq4Xs, x)),
    of("expansion of four bits with a table", four_bits),
    of("expansion of int8", int8),
];

/// Its operand is there for its device alone.
const fn of(name: &'static str, op: fn(&[Tensor]) -> Result<Tensor>) -> Operation {
    Operation { group: Portable, name, operands, op, roundings: 1.0 }
}

fn operands(numbers: &Numbers) -> Result<Vec<Tensor>> {
    Ok(vec![numbers.random(90, &[1])?])
}

fn blocks(kind: BlockType, x: &[Tensor]) -> Result<Tensor> {
    expand(Coding::Blocks(kind, 1.0), x)
}

fn four_bits(x: &[Tensor]) -> Result<Tensor> {
    let levels: [f32; 16] = std::array::from_fn(|level| level as f32 / 7.5 - 1.0);
    let scales = (0..NUMBERS / 64).map(|block| (1.0 + block as f32) / 64.0).collect();
    expand(Coding::FourBits { levels: &levels, block: 64, scales }, x)
}

fn int8(x: &[Tensor]) -> Result<Tensor> {
    expand(Coding::Int8 { scales: &[0.5, 1.0, 1.5, 2.0, 2.5] }, x)
}

fn expand(coding: Coding, x: &[Tensor]) -> Result<Tensor> {
    let codes = codes(coding.bytes(NUMBERS));
    expanded(&[PackedRows::new(&codes, [ROWS, COLUMNS], coding, x[0].device())?])
}

/// Bytes without a pattern, of which any two or four that are a number of a format are a finite one.
fn codes(count: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0xbb
    };
    std::iter::repeat_with(next).take(count).collect()
}
