//! Products by the `gemm` crate, for processors without one of our vector units; with the same bits, if the processor has fused
//! operations.
//!
//! The crate sums each output element over the inner dimension in order, but *how* depends on the problem's
//! size: it takes other paths for a single row and for at most 256 outputs, and cuts the inner dimension into blocks whose
//! length depends on whether both outer dimensions are at most 64. A block boundary is a rounding, so an image's bits
//! would depend on its batch. Two rules keep every product on one path with the same boundaries: the inner dimension is cut
//! here, into blocks that the crate never cuts again, and a matrix with fewer than [`ROWS_MIN`] rows is padded with zeros.

use std::ops::Range;

use gemm::Parallelism;

use super::{Destination, INNER_BLOCK, MatrixRef, Onto, Threads, inner_blocks};

/// Fewest rows in one call.
const ROWS_MIN: usize = 8;

/// Maximum outputs for which the crate takes its path for tiny matrices.
const TINY_OUTPUTS: usize = 256;

/// As [`super::multiply`].
pub(super) fn multiply(mut destination: Destination, left: MatrixRef, right: MatrixRef, onto: Onto, threads: Threads) {
    let (rows, columns) = (left.rows, right.columns);
    if let Onto::Bias(bias) = onto {
        destination
            .values
            .chunks_mut(destination.stride)
            .take(rows)
            .for_each(|row| row[..columns].copy_from_slice(bias));
    }
    let accumulate = !matches!(onto, Onto::Nothing);
    if columns == 1 || (1..=2).contains(&(left.columns % INNER_BLOCK)) {
        return multiply_plainly(&mut destination, left, right, accumulate);
    }
    let rows_min = ROWS_MIN.max(TINY_OUTPUTS / columns + 1);
    if rows >= rows_min {
        return multiply_blocks(&mut destination, left, right, accumulate, threads);
    }
    let Destination { values, stride } = destination;
    let padded = padded(left, rows_min);
    let mut outputs = vec![0.0; rows_min * columns];
    for (outputs, values) in outputs.chunks_exact_mut(columns).zip(values.chunks(stride)) {
        outputs.copy_from_slice(&values[..columns]);
    }
    let mut whole = Destination { values: &mut outputs, stride: columns };
    multiply_blocks(
        &mut whole,
        MatrixRef::new(&padded, rows_min, left.columns, left.columns),
        right,
        accumulate,
        threads,
    );
    for (values, outputs) in values.chunks_mut(stride).zip(outputs.chunks_exact(columns)).take(rows) {
        values[..columns].copy_from_slice(outputs);
    }
}

/// As the other ones do it, for what the crate has other paths: a single column, and blocks of at most two numbers.
fn multiply_plainly(destination: &mut Destination, left: MatrixRef, right: MatrixRef, accumulate: bool) {
    for row in 0..left.rows {
        let out = &mut destination.values[row * destination.stride..][..right.columns];
        for (column, out) in out.iter_mut().enumerate() {
            for block in inner_blocks(left.columns, INNER_BLOCK) {
                let is_added = accumulate || block.start > 0;
                let sum = block.fold(0.0_f32, |sum, at| {
                    let number = left.values[row * left.row_stride + at * left.column_stride];
                    number.mul_add(right.values[at * right.row_stride + column * right.column_stride], sum)
                });
                *out = if is_added { *out + sum } else { sum };
            }
        }
    }
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

fn multiply_blocks(
    destination: &mut Destination,
    left: MatrixRef,
    right: MatrixRef,
    accumulate: bool,
    threads: Threads,
) {
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    let stride = destination.stride;
    let start = destination.values.as_mut_ptr();
    for block in inner_blocks(left.columns, INNER_BLOCK) {
        let is_added = accumulate || block.start > 0;
        let (left, right) = (inner(left, &block), inner(right.transposed(), &block).transposed());
        // SAFETY: `multiply` has checked that the destination holds rows × columns values, and that the last element
        // of each operand lies inside its slice. The destination is borrowed mutably, so it overlaps neither operand.
        #[expect(unsafe_code, reason = "the crate's interface takes pointers and strides")]
        unsafe {
            gemm::gemm(
                left.rows,
                right.columns,
                block.len(),
                start,
                1,
                stride as isize,
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
}

/// Some of the columns.
fn inner<'a>(matrix: MatrixRef<'a>, columns: &Range<usize>) -> MatrixRef<'a> {
    let start = (columns.start * matrix.column_stride).min(matrix.values.len());
    MatrixRef { values: &matrix.values[start..], columns: columns.len(), ..matrix }
}
