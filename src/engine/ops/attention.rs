//! Attention inside each sequence of a packed stream. Nothing larger than a few rows of scores is ever held.

mod kernel;

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{MatrixRef, Threads, multiply};
use super::kernel::Kernel;
use super::softmax::softmax;
use super::vector::{softmax_numerators, vectorized};
use super::{Rows, Segments, contiguous, is_launchable, is_on_cpu, is_on_cuda};

pub(crate) use kernel::CHOICE as KERNELS;

/// Queries answered at a time: many, because the keys are rearranged anew for each block, but few enough that their
/// scores stay in the cache.
const QUERY_BLOCK: usize = 256;

/// `softmax(q kᵀ / sqrt(head width)) v` for every head, each sequence for itself.
///
/// `qkv [rows, 3 × heads × head width]` -> `[rows, heads × head width]`, dtype of `qkv`. Scores and their softmax are
/// f32. A sequence's bits depend on that sequence alone.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn attention(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    attention_by(KERNELS.chosen(qkv.device()), qkv, heads, segments)
}

/// [`attention`] by one kernel, where it is that of a CUDA device and takes heads of this width.
///
/// # Errors
/// As [`attention`].
pub(crate) fn attention_by(kernel: Kernel, qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    if is_on_cpu(qkv) || (is_on_cuda(&[qkv]) && is_launchable(segments) && is_compiled_for(qkv, heads)) {
        return qkv.apply_op1_no_bwd(&PackedAttention { kernel, heads, segments, bias: None });
    }
    attention_composed(qkv, heads, segments)
}

/// `softmax(q kᵀ + bias) v` of one sequence: T5's attention, which leaves scores as they are and knows of positions only
/// by this bias.
///
/// `qkv [tokens, 3 × heads × head width]` -> `[tokens, heads × head width]`, dtype of `qkv`; `bias [heads, 2 × tokens]` in
/// f32, of which value `tokens - 1 + d` is for a key that stands `d` tokens behind the query. Scores and their softmax are
/// f32.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn biased_attention(qkv: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    if bias.dims() != [heads, 2 * tokens] {
        bail!("attention: a bias of {:?} for {tokens} tokens and {heads} heads", bias.dims());
    }
    if is_on_cpu(qkv) || (is_on_cuda(&[qkv]) && is_compiled_with_bias_for(qkv, heads)) {
        let segments = Segments::from_lengths([tokens]);
        return qkv.apply_op1_no_bwd(&PackedAttention {
            kernel: Kernel::Warp,
            heads,
            segments: &segments,
            bias: Some(bias),
        });
    }
    biased_attention_composed(qkv, heads, bias)
}

/// [`attention`] into the columns of a wider matrix from `start` on; all others stay as they are.
///
/// `wide [rows, at least start + heads × head width]`, contiguous; `qkv` is no part of it.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn attention_into(
    wide: &Tensor,
    start: usize,
    qkv: &Tensor,
    heads: usize,
    segments: &Segments,
) -> Result<()> {
    let target = wide.narrow(1, start, qkv.dim(1)? / 3)?;
    if is_on_cuda(&[&target, qkv]) && is_launchable(segments) && is_compiled_for(qkv, heads) {
        let kernel = KERNELS.chosen(qkv.device());
        return target.inplace_op2(qkv, &PackedAttention { kernel, heads, segments, bias: None });
    }
    wide.slice_set(&attention(qkv, heads, segments)?, 1, start)
}

#[cfg(feature = "cuda")]
fn has_head_width_of(qkv: &Tensor, heads: usize, widths: &[usize]) -> bool {
    qkv.is_contiguous() && qkv.dim(1).is_ok_and(|width| widths.contains(&(width / 3 / heads)))
}

#[cfg(feature = "cuda")]
fn is_compiled_for(qkv: &Tensor, heads: usize) -> bool {
    has_head_width_of(qkv, heads, &super::cuda::attention::HEAD_WIDTHS)
}

#[cfg(feature = "cuda")]
fn is_compiled_with_bias_for(qkv: &Tensor, heads: usize) -> bool {
    has_head_width_of(qkv, heads, &super::cuda::text::HEAD_WIDTHS)
}

#[cfg(not(feature = "cuda"))]
fn is_compiled_for(_: &Tensor, _: usize) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn is_compiled_with_bias_for(_: &Tensor, _: usize) -> bool {
    false
}

/// One sequence's queries, keys and values, `[heads, rows, head width]` each.
fn heads_apart(sequence: &Tensor, heads: usize) -> Result<[Tensor; 3]> {
    let sequence = sequence.reshape((sequence.dim(0)?, 3, heads, ()))?;
    let part = |index| sequence.narrow(1, index, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

fn biased_attention_composed(qkv: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let [query, key, value] = heads_apart(qkv, heads)?;
    let of_queries = (0..tokens).map(|query| bias.narrow(1, tokens - 1 - query, tokens));
    let bias = Tensor::stack(&of_queries.collect::<Result<Vec<_>>>()?, 1)?;
    let scores = (query.matmul(&key.t()?)?.to_dtype(DType::F32)? + bias)?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(qkv.dtype())?;
    weights.matmul(&value)?.transpose(0, 1)?.contiguous()?.flatten_from(1)
}

fn attention_composed(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    let (_, width) = qkv.dims2()?;
    let head_width = width / 3 / heads;
    let scale = 1.0 / (head_width as f64).sqrt();
    let mut parts = Vec::with_capacity(segments.count());
    for range in segments.ranges() {
        let rows = range.len();
        let [query, key, value] = heads_apart(&qkv.narrow(0, range.start, rows)?, heads)?;
        let key = key.t()?;
        for start in (0..rows).step_by(1024) {
            let block = query.narrow(1, start, 1024.min(rows - start))?;
            let weights = softmax(&block.matmul(&key)?, scale)?;
            parts.push(weights.matmul(&value)?.transpose(0, 1)?.contiguous()?.flatten_from(1)?);
        }
    }
    Tensor::cat(&parts, 0)
}

struct PackedAttention<'a> {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU has one way"))]
    kernel: Kernel,
    heads: usize,
    segments: &'a Segments,
    /// As [`biased_attention`] takes it; then there is one sequence, and scores are not scaled.
    bias: Option<&'a Tensor>,
}

/// Some queries of one head of one sequence, and where their answers go: `[queries, head width]`.
struct Task<'a> {
    head: usize,
    sequence: Range<usize>,
    queries: Range<usize>,
    answers: &'a mut [f32],
}

impl CustomOp1 for PackedAttention<'_> {
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
        // Block by block, and head by head inside a block, so that each task has its answers to itself.
        let mut answers = vec![0.0_f32; rows * part_width];
        let mut tasks = Vec::new();
        let mut rest = answers.as_mut_slice();
        for (sequence, queries) in self.blocks() {
            let (block, after) = rest.split_at_mut(queries.len() * part_width);
            rest = after;
            for (head, answers) in block.chunks_exact_mut(block.len() / self.heads).enumerate() {
                tasks.push(Task { head, sequence: sequence.clone(), queries: queries.clone(), answers });
            }
        }
        let bias = self.bias.map(Tensor::to_vec2).transpose()?;
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |scores, task| attend(&qkv, self.heads, task, bias.as_deref(), scores));
        Ok((CpuStorage::F32(self.by_rows(&answers, part_width)), Shape::from((rows, part_width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.bias {
            None => super::cuda::attention::attention(self.kernel, storage, layout, self.heads, self.segments),
            Some(bias) => super::cuda::text::biased_attention(storage, layout, self.heads, bias),
        }
    }
}

/// Into a matrix that is there.
impl InplaceOp2 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention-into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("attention on the CPU makes a matrix of its own")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut CudaStorage, out_l: &Layout, qkv: &CudaStorage, qkv_l: &Layout) -> Result<()> {
        super::cuda::attention::attention_into(self.kernel, (out, out_l), (qkv, qkv_l), self.heads, self.segments)
    }
}

impl PackedAttention<'_> {
    /// Each sequence with each of its blocks of queries, in stream order.
    fn blocks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.segments.ranges().flat_map(|sequence| {
            let starts = sequence.clone().step_by(QUERY_BLOCK);
            starts.map(move |start| (sequence.clone(), start..(start + QUERY_BLOCK).min(sequence.end)))
        })
    }

    /// Answers as the tasks leave them, in the order of the stream: `[rows, heads × head width]`.
    fn by_rows(&self, answers: &[f32], part_width: usize) -> Vec<f32> {
        let head_width = part_width / self.heads;
        let mut out = Vec::with_capacity(answers.len());
        for (_, queries) in self.blocks() {
            let block = &answers[queries.start * part_width..queries.end * part_width];
            for row in 0..queries.len() {
                for head in 0..self.heads {
                    let start = (head * queries.len() + row) * head_width;
                    out.extend_from_slice(&block[start..start + head_width]);
                }
            }
        }
        out
    }
}

/// Answers a task's queries. `scores` is memory that one thread uses again and again.
fn attend(qkv: &Rows, heads: usize, task: Task, bias: Option<&[Vec<f32>]>, scores: &mut Vec<f32>) {
    let Task { head, sequence, queries, answers } = task;
    let part_width = qkv.width / 3;
    let head_width = part_width / heads;
    let matrix = |rows: &Range<usize>, part: usize| {
        let start = rows.start * qkv.stride + part * part_width + head * head_width;
        MatrixRef::new(&qkv.values[start..], rows.len(), head_width, qkv.stride)
    };
    let (query, key, value) = (matrix(&queries, 0), matrix(&sequence, 1), matrix(&sequence, 2));
    let keys = sequence.len();
    scores.resize(queries.len() * keys, 0.0);
    multiply(scores, query, key.transposed(), false, Threads::One);
    if let Some(bias) = bias {
        for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(keys)) {
            let bias = &bias[head][keys - 1 - query..][..keys];
            vectorized(|| {
                for (score, &bias) in scores.iter_mut().zip(bias) {
                    *score += bias;
                }
            });
        }
    }
    let scale = if bias.is_some() { 1.0 } else { 1.0 / (head_width as f32).sqrt() };
    let mut denominators = vec![0.0; queries.len()];
    vectorized(|| {
        // A plain loop: what an iterator's adapters call is not compiled for wide vectors.
        for (scores, denominator) in scores.chunks_exact_mut(keys).zip(&mut denominators) {
            *denominator = softmax_numerators(scores, scale);
        }
    });
    multiply(answers, MatrixRef::new(scores, queries.len(), keys, keys), value, false, Threads::One);
    for (answer, denominator) in answers.chunks_exact_mut(head_width).zip(denominators) {
        let inverse = 1.0 / denominator;
        for number in answer {
            *number *= inverse;
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
    fn with_a_bias_the_fused_op_equals_its_twin() {
        for (heads, head_width, tokens) in [(4, 16, 70), (2, 64, 300), (1, 32, 1)] {
            let random = |rows, columns| Tensor::randn(0.0_f32, 0.5, (rows, columns), &Device::Cpu).expect("randn");
            let (qkv, bias) = (random(tokens, 3 * heads * head_width), random(heads, 2 * tokens));
            let fused = biased_attention(&qkv, heads, &bias).expect("fused");
            let composed = biased_attention_composed(&qkv, heads, &bias).expect("composed");
            let largest: f32 = (fused - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-5, "{largest:e}");
            assert!(biased_attention(&qkv, heads, &random(heads, 2 * tokens - 1)).is_err());
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
