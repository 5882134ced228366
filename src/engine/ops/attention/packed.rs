//! The attention operation, by a given kernel.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::super::cuda;
use super::super::gemm::rounded::Form;
use super::super::gemm::{MatrixRef, Onto, Threads, VectorUnit, multiply};
use super::super::kernel::Kernel;
use super::super::softmax::softmax;
use super::super::vector::softmax_numerators;
use super::super::{Rows, Segments, contiguous, is_launchable, is_on_cpu, is_on_cuda};
use super::lanes::{self, QUERY_BLOCK, Scratch};
use super::rounded::RoundedStream;

/// [`super::attention`]; on a CUDA device by this kernel, if it takes heads of this width.
///
/// # Errors
/// As there.
pub(crate) fn attention_by(kernel: Kernel, qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    if is_on_cpu(qkv) || (is_launchable(segments) && is_compiled_for(qkv, heads)) {
        return qkv.apply_op1_no_bwd(&PackedAttention { kernel, heads, segments, bias: None, is_rounded: false });
    }
    attention_composed(qkv, heads, segments)
}

/// `softmax(q kᵀ + bias) v` of one sequence: T5's attention, which does not scale scores, and in which this bias alone
/// depends on positions.
///
/// `qkv [tokens, 3 × heads × head width]` -> `[tokens, heads × head width]`, dtype of `qkv`; `bias [heads, 2 × tokens]` in
/// f32, of which value `tokens - 1 + d` is for a key `d` tokens behind the query. Scores and their softmax are
/// f32.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn biased_attention(qkv: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    if bias.dims() != [heads, 2 * tokens] {
        bail!("attention: a bias of {:?} for {tokens} tokens and {heads} heads", bias.dims());
    }
    if is_on_cpu(qkv) || (is_on_cuda(&[qkv]) && has_head_width_of(qkv, heads, &cuda::text::HEAD_WIDTHS)) {
        let segments = Segments::from_lengths([tokens]);
        return qkv.apply_op1_no_bwd(&PackedAttention {
            kernel: Kernel::Warp,
            heads,
            segments: &segments,
            bias: Some(bias),
            is_rounded: false,
        });
    }
    biased_attention_composed(qkv, heads, bias)
}

/// [`super::attention`] on the CPU with queries, keys, values and the softmax's numerators rounded to bf16; scores, sums and denominators
/// are f32. A sequence's bits depend on that sequence alone.
///
/// # Errors
/// As there, or when it is not on the CPU.
pub(crate) fn rounded_attention(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    if !is_on_cpu(qkv) {
        bail!("attention is rounded to bf16 on the CPU in f32 alone, and the input is {:?}", qkv.dtype());
    }
    qkv.apply_op1_no_bwd(&PackedAttention { kernel: Kernel::Warp, heads, segments, bias: None, is_rounded: true })
}

/// [`super::attention_into`] by a kernel of a CUDA device. `false`: the kernel does not take this, and nothing was written.
///
/// # Errors
/// As there.
pub(super) fn attention_into_by(
    kernel: Kernel,
    target: &Tensor,
    qkv: &Tensor,
    heads: usize,
    segments: &Segments,
) -> Result<bool> {
    let is_possible = is_on_cuda(&[target]) && is_launchable(segments) && is_compiled_for(qkv, heads);
    if is_possible {
        target.inplace_op2(qkv, &PackedAttention { kernel, heads, segments, bias: None, is_rounded: false })?;
    }
    Ok(is_possible)
}

fn has_head_width_of(qkv: &Tensor, heads: usize, widths: &[usize]) -> bool {
    qkv.is_contiguous() && qkv.dim(1).is_ok_and(|width| widths.contains(&(width / 3 / heads)))
}

/// Whether the CUDA kernels take this stream.
fn is_compiled_for(qkv: &Tensor, heads: usize) -> bool {
    is_on_cuda(&[qkv]) && has_head_width_of(qkv, heads, &cuda::attention::HEAD_WIDTHS)
}

/// One sequence's queries, keys and values, `[heads, rows, head width]` each.
fn heads_apart(sequence: &Tensor, heads: usize) -> Result<[Tensor; 3]> {
    let sequence = sequence.reshape((sequence.dim(0)?, 3, heads, ()))?;
    let part = |index| sequence.narrow(1, index, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

pub(super) fn biased_attention_composed(qkv: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let [query, key, value] = heads_apart(qkv, heads)?;
    let of_queries = (0..tokens).map(|query| bias.narrow(1, tokens - 1 - query, tokens));
    let bias = Tensor::stack(&of_queries.collect::<Result<Vec<_>>>()?, 1)?;
    let scores = (query.matmul(&key.t()?)?.to_dtype(DType::F32)? + bias)?;
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(qkv.dtype())?;
    weights.matmul(&value)?.transpose(0, 1)?.contiguous()?.flatten_from(1)
}

pub(super) fn attention_composed(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
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
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU has no choice"))]
    kernel: Kernel,
    heads: usize,
    segments: &'a Segments,
    /// As in [`biased_attention`]; then there is one sequence, and scores are not scaled.
    bias: Option<&'a Tensor>,
    /// As in [`rounded_attention`].
    is_rounded: bool,
}

/// Some queries of one head of one sequence, and the memory of their outputs: `[queries, head width]`.
struct Task<'a> {
    head: usize,
    sequence: Range<usize>,
    queries: Range<usize>,
    out: &'a mut [f32],
}

impl CustomOp1 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let values = contiguous(storage, layout)?;
        let part_width = width / 3;
        if rows != self.segments.rows()
            || part_width * 3 != width
            || part_width == 0
            || !part_width.is_multiple_of(self.heads)
        {
            bail!("attention: {rows}x{width} is not {:?} of three parts of {} heads", self.segments, self.heads);
        }
        let qkv = Rows { values, count: rows, width, stride: width };
        // Block by block, and head by head inside a block, so that each task's outputs are contiguous.
        let mut out = vec![0.0_f32; rows * part_width];
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for (sequence, queries) in self.blocks() {
            let (block, after) = rest.split_at_mut(queries.len() * part_width);
            rest = after;
            for (head, out) in block.chunks_exact_mut(block.len() / self.heads).enumerate() {
                tasks.push(Task { head, sequence: sequence.clone(), queries: queries.clone(), out });
            }
        }
        let bias = self.bias.map(Tensor::to_vec2).transpose()?;
        let (unit, rounded) = if self.is_rounded {
            let (unit, form) = Form::of_this_processor();
            (unit, Some(RoundedStream::of(form, &qkv, self.heads, self.segments)))
        } else {
            (VectorUnit::of_this_processor(), None)
        };
        let stream = Stream { qkv: &qkv, heads: self.heads, bias: bias.as_deref(), rounded: rounded.as_ref() };
        tasks
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, mut task| stream.attend(&mut task, unit, scratch));
        Ok((CpuStorage::F32(self.by_rows(&out, part_width)), Shape::from((rows, part_width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.bias {
            None => cuda::attention::attention(self.kernel, storage, layout, self.heads, self.segments),
            Some(bias) => cuda::text::biased_attention(storage, layout, self.heads, bias),
        }
    }
}

/// Into an existing matrix.
impl InplaceOp2 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention-into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("attention on the CPU returns a matrix of its own")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut CudaStorage, out_l: &Layout, qkv: &CudaStorage, qkv_l: &Layout) -> Result<()> {
        cuda::attention::attention_into(self.kernel, (out, out_l), (qkv, qkv_l), self.heads, self.segments)
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

    /// The tasks' outputs in the order of the stream: `[rows, heads × head width]`.
    fn by_rows(&self, by_task: &[f32], part_width: usize) -> Vec<f32> {
        let head_width = part_width / self.heads;
        let mut out = Vec::with_capacity(by_task.len());
        for (_, queries) in self.blocks() {
            let block = &by_task[queries.start * part_width..queries.end * part_width];
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

/// What all tasks read.
struct Stream<'a> {
    qkv: &'a Rows<'a>,
    heads: usize,
    /// Of each head.
    bias: Option<&'a [Vec<f32>]>,
    /// Instead of `qkv`.
    rounded: Option<&'a RoundedStream>,
}

impl Stream<'_> {
    /// Computes a task's outputs, by a vector unit or without one: to the same bits.
    fn attend(&self, task: &mut Task, unit: Option<VectorUnit>, scratch: &mut Scratch) {
        let operands = self.operands(task);
        match unit {
            Some(unit) => lanes::attend(unit, &operands, scratch, task.out),
            None => attend_in_rows(&operands, task.out),
        }
    }

    fn operands(&self, task: &Task) -> lanes::Operands<'_> {
        let Task { head, ref sequence, ref queries, .. } = *task;
        let Rows { values, width, stride, .. } = *self.qkv;
        let part_width = width / 3;
        let head_width = part_width / self.heads;
        let matrix = |rows: &Range<usize>, part: usize| {
            let start = rows.start * stride + part * part_width + head * head_width;
            MatrixRef::new(&values[start..], rows.len(), head_width, stride)
        };
        let [query, key, value] = match self.rounded {
            None => [matrix(queries, 0), matrix(sequence, 1), matrix(sequence, 2)],
            Some(rounded) => {
                let rows = |part, rows| rounded.rows(part, head, rows);
                [rows(0, queries), rows(1, sequence), rounded.values(head, sequence)]
            }
        };
        lanes::Operands {
            query,
            key,
            value,
            form: self.rounded.map(RoundedStream::form),
            scale: if self.bias.is_some() { 1.0 } else { 1.0 / (head_width as f32).sqrt() },
            bias: self.bias.map(|bias| (queries.start - sequence.start, bias[head].as_slice())),
        }
    }
}

/// Scores `[queries, keys]`, by products that rearrange keys and values.
fn attend_in_rows(operands: &lanes::Operands, out: &mut [f32]) {
    let lanes::Operands { query, key, value, form, scale, bias } = *operands;
    let (queries, keys, head_width) = (query.rows, key.rows, value.columns);
    let mut scores = vec![0.0; queries * keys];
    multiply(&mut scores, query, key.transposed(), Onto::Nothing, Threads::One);
    if let Some((first, bias)) = bias {
        for (query, scores) in (first..).zip(scores.chunks_exact_mut(keys)) {
            for (score, &bias) in scores.iter_mut().zip(&bias[keys - 1 - query..]) {
                *score += bias;
            }
        }
    }
    let mut denominators = vec![0.0; queries];
    for (scores, denominator) in scores.chunks_exact_mut(keys).zip(&mut denominators) {
        *denominator = softmax_numerators(scores, scale);
    }
    let (weights, width) = match form {
        None => (scores, keys),
        Some(form) => {
            let width = form.width(keys);
            let mut rounded = vec![0.0; queries * width];
            let rows = scores.chunks_exact(keys).zip(rounded.chunks_exact_mut(width));
            rows.for_each(|(scores, rounded)| form.round(scores, rounded));
            (rounded, width)
        }
    };
    multiply(out, MatrixRef::new(&weights, queries, width, width), value, Onto::Nothing, Threads::One);
    for (row, denominator) in out.chunks_exact_mut(head_width).zip(denominators) {
        let inverse = 1.0 / denominator;
        for number in row {
            *number *= inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::super::gemm::rounded::tests::ways;
    use super::*;
    use crate::engine::noise::standard_normal;

    /// Some queries of the last head.
    fn attended(
        stream: &Stream,
        unit: Option<VectorUnit>,
        sequence: &Range<usize>,
        queries: &Range<usize>,
    ) -> Vec<f32> {
        let head_width = stream.qkv.width / 3 / stream.heads;
        let mut out = vec![0.0; queries.len() * head_width];
        let (sequence, queries) = (sequence.clone(), queries.clone());
        let mut task = Task { head: stream.heads - 1, sequence, queries, out: &mut out };
        stream.attend(&mut task, unit, &mut Scratch::default());
        out
    }

    const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 16), (70, 2, 24), (241, 1, 64), (600, 3, 128), (65, 2, 9)];

    #[test]
    fn queries_in_lanes_give_the_bits_of_scores_in_rows() {
        for (tokens, heads, head_width) in SHAPES {
            let width = 3 * heads * head_width;
            let values = standard_normal(7, 0, (tokens * width).next_multiple_of(16));
            let qkv = Rows { values: &values[..tokens * width], count: tokens, width, stride: width };
            let biases: Vec<Vec<f32>> = vec![standard_normal(8, 0, (2 * tokens).next_multiple_of(16)); heads];
            for bias in [None, Some(biases.as_slice())] {
                let stream = Stream { qkv: &qkv, heads, bias, rounded: None };
                for first in [0, tokens / 2] {
                    let queries = first..(first + QUERY_BLOCK).min(tokens);
                    let in_rows = attended(&stream, None, &(0..tokens), &queries);
                    for unit in VectorUnit::all() {
                        let in_lanes = attended(&stream, Some(unit), &(0..tokens), &queries);
                        assert!(in_lanes == in_rows, "{tokens} tokens, {queries:?}, {unit:?}");
                    }
                }
            }
        }
    }

    /// With what is rounded to bf16, on processors that multiply pairs of it and on others, with sequences of any length before.
    #[test]
    fn rounded_attention_has_the_same_bits_on_every_processor_and_is_near_that_of_rounded_numbers() {
        for (tokens, heads, head_width) in SHAPES {
            let segments = Segments::from_lengths([3, 0, tokens, 2]);
            let (rows, width) = (segments.rows(), 3 * heads * head_width);
            let values = standard_normal(9, 0, (rows * width).next_multiple_of(16));
            let qkv = Rows { values: &values[..rows * width], count: rows, width, stride: width };
            let rounded: Vec<f32> = qkv.values.iter().map(|number| bf16::from_f32(*number).to_f32()).collect();
            let of_rounded = Rows { values: &rounded, ..qkv };
            let sequence = segments.range(2);
            let queries = sequence.start..sequence.end.min(sequence.start + QUERY_BLOCK);
            let full = Stream { qkv: &of_rounded, heads, bias: None, rounded: None };
            let full = attended(&full, None, &sequence, &queries);
            let mut outputs = ways().into_iter().map(|(unit, form)| {
                let rounded = RoundedStream::of(form, &qkv, heads, &segments);
                attended(&Stream { qkv: &qkv, heads, bias: None, rounded: Some(&rounded) }, unit, &sequence, &queries)
            });
            let first = outputs.next().expect("at least one way");
            assert!(outputs.all(|other| other == first), "{tokens} tokens");
            let largest = first.iter().zip(&full).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let is_one = tokens == 1;
            assert!(largest < 0.01 && (largest > 0.0 || is_one), "{tokens} tokens: {largest:e}");
        }
    }
}
