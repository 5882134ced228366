//! Every operation by the kernels that run on every device, on small shapes. No size is a multiple of a tile.

use candle_core::{DType, Device, Result, Tensor};

use super::operation::Operation;
use super::shapes::{
    HEAD_WIDTH, HEADS, ROWS, SEQUENCES, WIDTH, attend_to_long_sequence, long_sequence, segments, small_convolution,
    small_doubled,
};
use crate::domain::operation_group::OperationGroup::Portable;
use crate::engine::ops::activation::{gelu_tanh, silu};
use crate::engine::ops::attention::{attention_by, attention_into, biased_attention};
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::GroupNorm;
use crate::engine::ops::kernel::Kernel;
use crate::engine::ops::linear::{gelu_linear, gelu_linear_into, linear, matrix_product};
use crate::engine::ops::low_rank::{LowRankPart, low_rank_add, padded};
use crate::engine::ops::modulation::{gated_residual, modulated_layer_norm};
use crate::engine::ops::rope::{Rotary, normalize_and_rotate, normalize_and_rotate_into};
use crate::engine::ops::softmax::softmax;
use crate::engine::ops::text::{gated_gelu, rms_norm};
use crate::engine::ops::{Places, unwritten};

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        operands: |numbers| {
            Ok(vec![numbers.random(1, &[ROWS, WIDTH])?, numbers.random(2, &[256, WIDTH])?, numbers.random(3, &[256])?])
        },
        ..of("linear", |x| linear(&x[0], &x[1], Some(&x[2])))
    },
    Operation {
        operands: |numbers| {
            let weight = numbers.weight(31, &[4 * WIDTH, WIDTH])?;
            Ok(vec![numbers.random(30, &[ROWS, WIDTH])?, weight, numbers.random(32, &[4 * WIDTH])?])
        },
        ..of("linear, GELU", |x| gelu_linear(&x[0], &x[1], Some(&x[2])))
    },
    Operation {
        operands: |numbers| Ok(vec![numbers.random(4, &[ROWS, 3 * WIDTH])?]),
        ..of("attention", |x| attention_by(Kernel::Warp, &x[0], HEADS, &segments()))
    },
    Operation {
        operands: long_sequence,
        ..of("attention of 4608 tokens", |x| attend_to_long_sequence(Kernel::Warp, x))
    },
    Operation {
        operands: |numbers| {
            let per_sequence = |seed| numbers.random(seed, &[SEQUENCES, WIDTH]);
            Ok(vec![numbers.random(5, &[ROWS, WIDTH])?, per_sequence(6)?, per_sequence(7)?])
        },
        ..of("modulated layer norm", |x| modulated_layer_norm(&x[0], &x[1], &x[2], &segments()))
    },
    Operation {
        operands: |numbers| {
            let stream = |seed| numbers.random(seed, &[ROWS, WIDTH]);
            let (gate, weight) = (numbers.random(10, &[SEQUENCES, WIDTH])?, numbers.weight(21, &[WIDTH, WIDTH])?);
            Ok(vec![stream(8)?, stream(9)?, gate, weight, numbers.random(22, &[WIDTH])?])
        },
        ..of("gated residual", |x| {
            gated_residual(&x[0], &matrix_product(&x[1], &x[3], Some(&x[4]))?, &x[2], &segments())
        })
    },
    Operation {
        operands: |numbers| {
            let head = |seed| numbers.random(seed, &[HEAD_WIDTH]);
            Ok(vec![numbers.random(11, &[ROWS, 3 * WIDTH])?, head(12)?, head(13)?])
        },
        ..of("normalize and rotate", |x| {
            normalize_and_rotate(&x[0].clone().into(), &x[1], &x[2], Some(&tables(x[0].device())?))
        })
    },
    Operation {
        operands: |numbers| {
            let head = |seed| numbers.random(seed, &[HEAD_WIDTH]);
            let (weight, bias) = (numbers.weight(23, &[4 * WIDTH, WIDTH])?, numbers.random(24, &[4 * WIDTH])?);
            Ok(vec![numbers.random(14, &[ROWS, WIDTH])?, head(15)?, head(16)?, weight, bias])
        },
        ..of("normalize a biased slice", |x| {
            let product = matrix_product(&x[0], &x[3], Some(&x[4]))?;
            normalize_and_rotate(&product.narrow(WIDTH, 3 * WIDTH)?, &x[1], &x[2], None)
        })
    },
    Operation {
        operands: |numbers| Ok(vec![numbers.random(17, &[ROWS, 4 * WIDTH])?]),
        ..of("GELU", |x| gelu_tanh(&x[0].narrow(1, WIDTH, WIDTH)?.into()))
    },
    Operation {
        operands: |numbers| {
            let weight = numbers.weight(25, &[WIDTH, WIDTH])?;
            Ok(vec![numbers.random(18, &[ROWS, WIDTH])?, weight, numbers.random(26, &[WIDTH])?])
        },
        ..of("biased GELU", |x| gelu_tanh(&matrix_product(&x[0], &x[1], Some(&x[2]))?))
    },
    Operation {
        operands: |numbers| {
            let channels = |seed| numbers.random(seed, &[64]);
            Ok(vec![numbers.random(27, &[1, 64, 24, 48])?, channels(28)?, channels(29)?])
        },
        ..of("group norm, SiLU", |x| GroupNorm::new(32, 1e-6, x[1].clone(), x[2].clone()).forward_silu(&x[0]))
    },
    Operation { operands: |numbers| Ok(vec![numbers.random(20, &[ROWS, WIDTH])?]), ..of("SiLU", |x| silu(&x[0])) },
    Operation {
        operands: |numbers| {
            let qkv = numbers.rounded(&(numbers.random(30, &[128, 3 * WIDTH])? * 0.3)?)?;
            Ok(vec![qkv, numbers.random(31, &[2 * HEADS, 256])?])
        },
        ..of("attention with a bias", |x| biased_attention(&x[0], 2 * HEADS, &x[1].to_dtype(DType::F32)?))
    },
    Operation {
        operands: |numbers| Ok(vec![numbers.random(32, &[ROWS, WIDTH])?, numbers.random(33, &[WIDTH])?]),
        ..of("RMSNorm", |x| rms_norm(&x[0], &x[1], 1e-6))
    },
    Operation {
        operands: |numbers| Ok(vec![numbers.random(34, &[ROWS, 2 * WIDTH])?]),
        ..of("gated GELU", |x| gated_gelu(&x[0]))
    },
    Operation {
        operands: |numbers| {
            let (qkv, x) = (numbers.random(33, &[ROWS, 3 * WIDTH])?, numbers.random(34, &[ROWS, WIDTH])?);
            Ok(vec![qkv, x, numbers.weight(35, &[4 * WIDTH, WIDTH])?, numbers.random(36, &[4 * WIDTH])?])
        },
        ..of("attention beside a layer's GELU", |x| {
            let both = unwritten(ROWS, 5 * WIDTH, &x[0])?;
            attention_into(&both, 0, &x[0], HEADS, &segments())?;
            gelu_linear_into(&both, WIDTH, &x[1], &x[2], Some(&x[3]))?;
            Ok(both)
        })
    },
    Operation {
        operands: |numbers| {
            let stream = |seed| numbers.random(seed, &[ROWS, 3 * WIDTH]);
            let head = |seed| numbers.random(seed, &[HEAD_WIDTH]);
            Ok(vec![stream(37)?, stream(38)?, head(39)?, head(40)?])
        },
        ..of("rotate into a joint stream", rotate_into_a_joint_stream)
    },
    Operation {
        operands: small_convolution,
        ..of("convolution onto a residual", |x| {
            Convolution::by(Kernel::Warp, &x[1], &x[2], false)?.forward_onto(&x[0], &x[3])
        })
    },
    Operation {
        operands: |numbers| {
            let (image, kernel) = (numbers.random(44, &[1, 24, 9, 17])?, numbers.weight(45, &[3, 24, 3, 3])?);
            Ok(vec![image, kernel, numbers.random(46, &[3])?])
        },
        ..of("convolution to colors", |x| Convolution::by(Kernel::Warp, &x[1], &x[2], false)?.forward(&x[0]))
    },
    Operation {
        operands: small_doubled,
        ..of("convolution, doubled", |x| Convolution::by(Kernel::Warp, &x[1], &x[2], true)?.forward(&x[0]))
    },
    Operation {
        operands: |numbers| {
            let (image, kernel) = (numbers.random(50, &[1, 48, 7, 18])?, numbers.weight(51, &[40, 48, 1, 1])?);
            Ok(vec![image, kernel, numbers.random(52, &[40])?])
        },
        ..of("convolution 1x1", |x| Convolution::by(Kernel::Warp, &x[1], &x[2], false)?.forward(&x[0]))
    },
    Operation {
        operands: |numbers| {
            let channels = |seed| numbers.random(seed, &[48]);
            Ok(vec![numbers.random(53, &[1, 48, 13, 11])?, channels(54)?, channels(55)?])
        },
        ..of("group norm of sixes", |x| GroupNorm::new(8, 1e-6, x[1].clone(), x[2].clone()).forward(&x[0]))
    },
    Operation {
        operands: |numbers| Ok(vec![numbers.random(56, &[3, 264])?]),
        ..of("softmax", |x| softmax(&x[0], 0.3))
    },
    Operation {
        operands: |numbers| {
            let mut operands = vec![numbers.random(57, &[ROWS, WIDTH])?, numbers.random(58, &[ROWS, WIDTH])?];
            for ([rank, columns], seed) in LOW_RANKS.into_iter().zip([59, 61, 63, 65]) {
                operands.push(numbers.weight(seed, &[rank, WIDTH])?);
                operands.push(numbers.weight(seed + 1, &[columns, rank])?);
            }
            Ok(operands)
        },
        // What is between the two products is rounded as well.
        roundings: 2.0,
        ..of("changes of low rank", changes_of_low_rank)
    },
];

/// Ranks, and how many columns they change.
const LOW_RANKS: [[usize; 2]; 4] = [[16, WIDTH], [5, 128], [256, 64], [40, 200]];

/// An operation of this group, still without operands.
const fn of(name: &'static str, op: fn(&[Tensor]) -> Result<Tensor>) -> Operation {
    Operation { group: Portable, name, operands: |_| Ok(Vec::new()), op, roundings: 1.0 }
}

/// Rotary tables of tokens in two columns.
fn tables(device: &Device) -> Result<Rotary> {
    let positions = (0..ROWS / 2 * 2).map(|token| [0, token / 2, token % 2]);
    Rotary::at(positions, [16, 56, 56], 10_000.0, device)
}

/// Two changes of the first sequence, one of another's only row, one of the last sequence, and none of the third.
fn changes_of_low_rank(x: &[Tensor]) -> Result<Tensor> {
    let out = x[0].copy()?;
    let places = [(0, 0), (0, 96), (1, 64), (3, 120)];
    let matrices = x[2..].chunks_exact(2).map(|pair| padded(&pair[0], &pair[1])).collect::<Result<Vec<_>>>()?;
    let segments = segments();
    let parts = matrices.iter().zip(places).zip([0.5, -1.0, 1.5, 1.0]);
    let parts = parts.map(|(([down, up], (sequence, start)), scale)| {
        Ok(LowRankPart { rows: segments.range(sequence), columns: start..start + up.dim(0)?, down, up, scale })
    });
    low_rank_add(&out, &x[1], &parts.collect::<Result<Vec<_>>>()?)?;
    Ok(out)
}

/// Each sequence has first its part of one stream, then of the other.
fn rotate_into_a_joint_stream(x: &[Tensor]) -> Result<Tensor> {
    let segments = segments();
    let firsts = Places::new(&segments, segments.ranges().map(|range| 2 * range.start));
    let seconds = Places::new(&segments, segments.ranges().map(|range| range.start + range.end));
    let joint = unwritten(2 * ROWS, 3 * WIDTH, &x[0])?;
    let rotary = tables(x[0].device())?;
    normalize_and_rotate_into(&joint, &firsts, &x[0].clone().into(), [&x[2], &x[3]], None)?;
    normalize_and_rotate_into(&joint, &seconds, &x[1].clone().into(), [&x[2], &x[3]], Some(&rotary))?;
    Ok(joint)
}
