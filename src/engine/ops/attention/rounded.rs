//! Queries, keys and values that are rounded to bf16, once for all tasks.

use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::MatrixRef;
use super::super::gemm::rounded::Form;
use super::super::{Rows, Segments};

/// A stream `[rows, 3 × heads × head width]`, rounded.
pub(super) struct RoundedStream {
    form: Form,
    head_width: usize,
    /// `[rows, 2 × heads × form.width(head width)]`: queries and keys.
    queries_and_keys: Vec<f32>,
    stride: usize,
    /// `[form.width(rows) of each sequence, heads × head width]`
    values: Vec<f32>,
    values_stride: usize,
    /// Where the values of each sequence begin, after the number of its first row.
    starts: Vec<(usize, usize)>,
}

impl RoundedStream {
    pub(super) fn of(form: Form, qkv: &Rows, heads: usize, segments: &Segments) -> Self {
        let part_width = qkv.width / 3;
        let head_width = part_width / heads;
        let stride = 2 * heads * form.width(head_width);
        let mut queries_and_keys = vec![0.0; qkv.count * stride];
        queries_and_keys.par_chunks_exact_mut(stride).enumerate().for_each(|(row, out)| {
            let numbers = qkv.values[row * qkv.stride..][..2 * part_width].chunks_exact(head_width);
            let out = out.chunks_exact_mut(form.width(head_width));
            numbers.zip(out).for_each(|(numbers, out)| form.round(numbers, out));
        });
        let mut starts = Vec::with_capacity(segments.count());
        let mut rows = 0;
        for sequence in segments.ranges() {
            starts.push((sequence.start, rows));
            rows += form.width(sequence.len());
        }
        let mut values = vec![0.0; rows * part_width];
        let mut rest = values.as_mut_slice();
        for sequence in segments.ranges() {
            let (own, after) = rest.split_at_mut(form.width(sequence.len()) * part_width);
            rest = after;
            let of_parts = &qkv.values[(sequence.start * qkv.stride + 2 * part_width).min(qkv.values.len())..];
            let matrix = MatrixRef::new(of_parts, sequence.len(), part_width, qkv.stride);
            let pairs = own.par_chunks_exact_mut(form.width(2) * part_width).enumerate();
            pairs.for_each(|(pair, out)| form.round_pair_of_rows(matrix, pair, out));
        }
        Self { form, head_width, queries_and_keys, stride, values, values_stride: part_width, starts }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Queries (part 0) or keys (part 1) of a head in some rows.
    pub(super) fn rows(&self, part: usize, head: usize, rows: &Range<usize>) -> MatrixRef<'_> {
        let width = self.form.width(self.head_width);
        let start = rows.start * self.stride + part * self.stride / 2 + head * width;
        MatrixRef::new(&self.queries_and_keys[start..], rows.len(), width, self.stride)
    }

    /// The values of a head in a sequence, `[form.width(rows), head width]`.
    pub(super) fn values(&self, head: usize, sequence: &Range<usize>) -> MatrixRef<'_> {
        // Of those that begin there, all but the last are empty.
        let number = self.starts.partition_point(|(first, _)| *first <= sequence.start);
        let row = number.checked_sub(1).map_or(0, |number| self.starts[number].1);
        let start = row * self.values_stride + head * self.head_width;
        MatrixRef::new(&self.values[start..], self.form.width(sequence.len()), self.head_width, self.values_stride)
    }
}
