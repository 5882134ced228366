//! Batch-invariant GEMM on the CPU: an output row has the same bits however many rows there are.
//!
//! The `gemm` crate sums each output element over the inner dimension in order, but *how* depends on the problem's
//! size: it takes other paths for a single row and for at most 256 outputs, and cuts the inner dimension into blocks whose
//! length depends on whether both outer dimensions are at most 64. A block boundary is a rounding, so an image's bits
//! would depend on its batch. Two rules keep every GEMM on one path with the same boundaries: the inner dimension is cut
//! here, into blocks that the crate never cuts again, and a matrix with fewer than [`ROWS_MIN`] rows is padded with zeros.

pub(crate) mod expanded;

use std::ops::Range;

use gemm::Parallelism;

/// Inner dimension of one call. The crate's own blocks are never shorter than this.
const INNER_BLOCK: usize = 512;

/// Fewest rows in one call.
const ROWS_MIN: usize = 8;

/// Maximum outputs for which the crate takes its path for tiny matrices.
const TINY_OUTPUTS: usize = 256;

/// A read-only matrix: element (i, j) is at `i × row_stride + j × column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRef<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// A matrix with contiguous rows that start `row_stride` apart.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the columns.
    fn inner(self, columns: &Range<usize>) -> Self {
        let start = (columns.start * self.column_stride).min(self.values.len());
        Self { values: &self.values[start..], columns: columns.len(), ..self }
    }

    fn assert_in_bounds(&self) {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.values.len(), "a matrix is larger than its values");
        }
    }
}

/// Whether a GEMM may use the thread pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// This thread only: for callers that are parallel themselves.
    One,
    /// All threads of the pool.
    All,
}

/// `destination (+)= left × right`, in row-major order; with `accumulate`, adds to what is there.
pub(crate) fn multiply(destination: &mut [f32], left: MatrixRef, right: MatrixRef, accumulate: bool, threads: Threads) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "inner dimensions differ");
    assert_eq!(destination.len(), rows * columns, "the destination has another size");
    left.assert_in_bounds();
    right.assert_in_bounds();
    if rows == 0 || columns == 0 {
        return;
    }
    let rows_min = rows_min(columns);
    if rows >= rows_min {
        return multiply_blocks(destination, left, right, accumulate, threads);
    }
    let padded = padded(left, rows_min);
    let mut outputs = vec![0.0; rows_min * columns];
    outputs[..rows * columns].copy_from_slice(destination);
    multiply_blocks(&mut outputs, MatrixRef::new(&padded, rows_min, inner, inner), right, accumulate, threads);
    destination.copy_from_slice(&outputs[..rows * columns]);
}

/// Fewest rows with which the crate takes the path of all larger matrices.
fn rows_min(columns: usize) -> usize {
    ROWS_MIN.max(TINY_OUTPUTS / columns + 1)
}

/// A copy with contiguous rows, and rows of zeros up to `rows`.
fn padded(matrix: MatrixRef, rows: usize) -> Vec<f32> {
    let mut padded = vec![0.0; rows * matrix.columns];
    for row in 0..matrix.rows {
        for column in 0..matrix.columns {
            padded[row * matrix.columns + column] =
                matrix.values[row * matrix.row_stride + column * matrix.column_stride];
        }
    }
    padded
}

/// The blocks of the inner dimension. One, empty, where there is no inner dimension.
fn inner_blocks(inner: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inner.div_ceil(INNER_BLOCK).max(1)).map(move |block| {
        let start = block * INNER_BLOCK;
        start..(start + INNER_BLOCK).min(inner)
    })
}

fn multiply_blocks(destination: &mut [f32], left: MatrixRef, right: MatrixRef, accumulate: bool, threads: Threads) {
    let target = Target { start: destination.as_mut_ptr(), stride: right.columns };
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    for block in inner_blocks(left.columns) {
        let is_added = accumulate || block.start > 0;
        // SAFETY: `multiply` has checked that the destination holds rows × columns values, and that the last element
        // of each operand lies inside its slice. The destination is borrowed mutably, so it overlaps neither operand.
        #[expect(unsafe_code, reason = "the crate's interface takes pointers and strides")]
        unsafe {
            multiply_block(target, left, right, (&block, is_added), parallelism);
        }
    }
}

/// Where a product is written: rows that start `stride` apart.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    stride: usize,
}

impl Target {
    /// The columns from `column` on.
    fn columns_from(&self, column: usize) -> Self {
        Self { start: self.start.wrapping_add(column), stride: self.stride }
    }
}

/// Adds the product of a block of the inner dimension to the target, or writes it there.
///
/// # Safety
/// The target must have the rows of `left` and the columns of `right`, and nobody else may use them meanwhile; the block must
/// be inside both matrices, and they inside their slices.
#[expect(unsafe_code, reason = "the crate's interface takes pointers and strides")]
unsafe fn multiply_block(
    target: Target,
    left: MatrixRef,
    right: MatrixRef,
    (block, is_added): (&Range<usize>, bool),
    parallelism: Parallelism,
) {
    let (left, right) = (left.inner(block), right.transposed().inner(block).transposed());
    // SAFETY: as the caller promises.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            block.len(),
            target.start,
            1,
            target.stride as isize,
            is_added,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    /// Rows have the same bits alone, in smaller batches and in a batch of `rows`.
    #[test]
    fn a_row_has_the_same_bits_alone_and_batched() {
        for (inner, columns) in [(8, 8), (64, 64), (64, 320), (100, 33), (513, 64), (1536, 64), (3072, 64), (1030, 65)]
        {
            let rows = 300;
            let left = numbers(rows * inner, 1);
            let right = numbers(inner * columns, 2);
            let weight = MatrixRef::new(&right, columns, inner, inner).transposed();
            let product = |first: usize, count: usize, threads| {
                let mut out = vec![0.0; count * columns];
                let rows = MatrixRef::new(&left[first * inner..], count, inner, inner);
                multiply(&mut out, rows, weight, false, threads);
                out
            };
            let batched = product(0, rows, Threads::All);
            for count in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 63, 64, 65, 127, 128, 200] {
                for first in [0, 1, 37, 99] {
                    let alone = product(first, count, Threads::One);
                    let expected = &batched[first * columns..(first + count) * columns];
                    assert_eq!(alone, expected, "{count} rows from {first}, {inner}x{columns}");
                }
            }
        }
    }

    #[test]
    fn matrices_are_multiplied_and_accumulated() {
        let (rows, inner, columns) = (5, 700, 3);
        let left = numbers(rows * inner, 3);
        let right = numbers(inner * columns, 4);
        let mut out = vec![1.0; rows * columns];
        let right_matrix = MatrixRef::new(&right, inner, columns, columns);
        multiply(&mut out, MatrixRef::new(&left, rows, inner, inner), right_matrix, true, Threads::One);
        for row in 0..rows {
            for column in 0..columns {
                let exact: f64 =
                    (0..inner).map(|i| f64::from(left[row * inner + i]) * f64::from(right[i * columns + column])).sum();
                assert!((f64::from(out[row * columns + column]) - 1.0 - exact).abs() < 1e-4);
            }
        }
    }
}
