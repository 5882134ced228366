//! Attention inside each sequence of a packed stream. Nothing larger than a few rows of scores is ever held.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{MatrixRef, Threads, multiply};
use super::vector::{softmax, vectorized};
use super::{Rows, Segments, contiguous, is_fused};

/// Queries handled at a time: large enough that keys are read from cache, small enough that their scores stay there.
const QUERY_BLOCK: usize = 64;

/// `softmax(q kᵀ / sqrt(head width)) v` for every head, each sequence for itself.
///
/// `qkv [rows, 3 × heads × head width]` -> `[rows, heads × head width]`, dtype of `qkv`. Scores and their softmax are
/// f32. A sequence's bits on the CPU depend on that sequence alone.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn attention(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    if is_fused(qkv) {
        return qkv.apply_op1_no_bwd(&CpuAttention { heads, segments });
    }
    attention_composed(qkv, heads, segments)
}

fn attention_composed(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    let (_, width) = qkv.dims2()?;
    let head_width = width / 3 / heads;
    let scale = 1.0 / (head_width as f64).sqrt();
    let mut parts = Vec::with_capacity(segments.count());
    for range in segments.ranges() {
        let rows = range.len();
        let sequence = qkv.narrow(0, range.start, rows)?.reshape((rows, 3, heads, head_width))?;
        let part = |index| sequence.narrow(1, index, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
        let (query, key, value): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);
        let key = key.t()?;
        for start in (0..rows).step_by(1024) {
            let block = query.narrow(1, start, 1024.min(rows - start))?;
            let scores = (block.matmul(&key)?.to_dtype(DType::F32)? * scale)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(qkv.dtype())?;
            parts.push(weights.matmul(&value)?.transpose(0, 1)?.contiguous()?.flatten_from(1)?);
        }
    }
    Tensor::cat(&parts, 0)
}

struct CpuAttention<'a> {
    heads: usize,
    segments: &'a Segments,
}

/// Queries of one sequence that one task answers, and where the answers go.
struct Block<'a> {
    sequence: std::ops::Range<usize>,
    queries: std::ops::Range<usize>,
    out: &'a mut [f32],
}

impl CustomOp1 for CpuAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let values = contiguous(storage, layout)?;
        let part_width = width / 3;
        if rows != self.segments.rows() || part_width * 3 != width || !part_width.is_multiple_of(self.heads) {
            bail!("attention: {rows}x{width} is not {:?} of three parts of {} heads", self.segments, self.heads);
        }
        let qkv = Rows { values, count: rows, width, stride: width };
        let mut out = vec![0.0_f32; rows * part_width];
        let mut rest = out.as_mut_slice();
        let mut blocks = Vec::new();
        for sequence in self.segments.ranges() {
            for start in sequence.clone().step_by(QUERY_BLOCK) {
                let queries = start..(start + QUERY_BLOCK).min(sequence.end);
                let (block, after) = rest.split_at_mut(queries.len() * part_width);
                rest = after;
                blocks.push(Block { sequence: sequence.clone(), queries, out: block });
            }
        }
        blocks.into_par_iter().for_each_init(Scratch::default, |scratch, block| {
            attend(&qkv, self.heads, block, scratch);
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, part_width))))
    }
}

/// Memory that one thread uses again and again.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    answers: Vec<f32>,
}

fn attend(qkv: &Rows, heads: usize, block: Block, scratch: &mut Scratch) {
    let Block { sequence, queries: own, out } = block;
    let part_width = qkv.width / 3;
    let head_width = part_width / heads;
    let scale = 1.0 / (head_width as f32).sqrt();
    let (queries, keys) = (own.len(), sequence.len());
    scratch.scores.resize(queries * keys, 0.0);
    scratch.answers.resize(queries * head_width, 0.0);
    for head in 0..heads {
        let matrix = |rows: &std::ops::Range<usize>, part: usize| {
            let start = rows.start * qkv.stride + part * part_width + head * head_width;
            MatrixRef::new(&qkv.values[start..], rows.len(), head_width, qkv.stride)
        };
        let (query, key, value) = (matrix(&own, 0), matrix(&sequence, 1), matrix(&sequence, 2));
        multiply(&mut scratch.scores, query, key.transposed(), false, Threads::One);
        vectorized(|| {
            for scores in scratch.scores.chunks_exact_mut(keys) {
                softmax(scores, scale);
            }
        });
        let weights = MatrixRef::new(&scratch.scores, queries, keys, keys);
        multiply(&mut scratch.answers, weights, value, false, Threads::One);
        let answers = scratch.answers.chunks_exact(head_width);
        for (row, answer) in out.chunks_exact_mut(part_width).zip(answers) {
            row[head * head_width..][..head_width].copy_from_slice(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_fused_op_equals_its_twin() {
        for (heads, head_width) in [(4, 16), (2, 128), (1, 64)] {
            let segments = Segments::from_lengths([70, 1, 200, 64]);
            let qkv = Tensor::randn(0.0_f32, 1.0, (335, 3 * heads * head_width), &Device::Cpu).expect("randn");
            let fused = attention(&qkv, heads, &segments).expect("fused");
            let composed = attention_composed(&qkv, heads, &segments).expect("composed");
            let largest: f32 = (fused - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-5, "{largest:e}");
        }
    }

    #[test]
    fn a_sequence_does_not_depend_on_its_company() {
        let lengths = [33, 80, 5, 130];
        let qkv = Tensor::randn(0.0_f32, 1.0, (248, 3 * 64), &Device::Cpu).expect("randn");
        let segments = Segments::from_lengths(lengths);
        let together = attention(&qkv, 4, &segments).expect("together");
        for range in segments.ranges() {
            let own = qkv.narrow(0, range.start, range.len()).expect("narrow");
            let alone = attention(&own, 4, &Segments::from_lengths([range.len()])).expect("alone");
            let among = together.narrow(0, range.start, range.len()).expect("narrow");
            assert_eq!(alone.to_vec2::<f32>().expect("values"), among.to_vec2::<f32>().expect("values"));
        }
    }
}
