//! A product with a matrix whose rows are expanded tile by tile, with the bits of the product with the whole matrix.

use std::ops::Range;

use candle_core::Result;
use gemm::Parallelism;
use rayon::prelude::*;

use super::{MatrixRef, Target, inner_blocks, multiply_block, padded, rows_min};

/// Most columns of a tile: with a block of the inner dimension eight megabytes, which a processor's last cache holds. The crate
/// copies all of the left side for each call, which must be little beside the product.
const TILE_COLUMNS_MAX: usize = 4096;

/// Rows that a thread expands at a time.
const ROWS_EXPANDED: usize = 16;

/// A matrix whose rows are expanded when they are multiplied.
pub(crate) trait ExpandRows: Sync {
    fn rows(&self) -> usize;

    fn columns(&self) -> usize;

    /// Writes some columns of a row to `out`, which is as long.
    ///
    /// # Errors
    /// When the row cannot be read.
    fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()>;
}

/// `destination (+)= left × the transpose of right`, in row-major order, on all threads. With the bits of [`super::multiply`] of the
/// expanded matrix, of which one tile is in memory at a time.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn multiply_expanded(
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    accumulate: bool,
) -> Result<()> {
    let (rows, inner, columns) = (left.rows, left.columns, right.rows());
    assert_eq!(inner, right.columns(), "inner dimensions differ");
    assert_eq!(destination.len(), rows * columns, "the destination has another size");
    left.assert_in_bounds();
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    // Of the same width, so that none is narrow.
    let tiles = columns.div_ceil(TILE_COLUMNS_MAX);
    let rows_min = rows_min(columns / tiles);
    if rows >= rows_min {
        return multiply_tiles(destination, left, right, accumulate, tiles);
    }
    let padded = padded(left, rows_min);
    let mut outputs = vec![0.0; rows_min * columns];
    outputs[..rows * columns].copy_from_slice(destination);
    multiply_tiles(&mut outputs, MatrixRef::new(&padded, rows_min, inner, inner), right, accumulate, tiles)?;
    destination.copy_from_slice(&outputs[..rows * columns]);
    Ok(())
}

fn multiply_tiles(
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    accumulate: bool,
    tiles: usize,
) -> Result<()> {
    let columns = right.rows();
    let target = Target { start: destination.as_mut_ptr(), stride: columns };
    let mut expanded = Vec::new();
    for tile in 0..tiles {
        let outputs = columns * tile / tiles..columns * (tile + 1) / tiles;
        for block in inner_blocks(left.columns) {
            expanded.resize(outputs.len() * block.len(), 0.0);
            expand(right, &outputs, &block, &mut expanded)?;
            let tile = MatrixRef::new(&expanded, outputs.len(), block.len(), block.len()).transposed();
            let (left, is_added) = (left.inner(&block), accumulate || block.start > 0);
            // SAFETY: as in `multiply`. A tile is some columns of the destination, which is borrowed mutably.
            #[expect(unsafe_code, reason = "the crate's interface takes pointers and strides")]
            unsafe {
                let target = target.columns_from(outputs.start);
                multiply_block(target, left, tile, (&(0..left.columns), is_added), Parallelism::Rayon(0));
            }
        }
    }
    Ok(())
}

/// Expands a block of some rows, on all threads.
fn expand(right: &dyn ExpandRows, rows: &Range<usize>, block: &Range<usize>, out: &mut [f32]) -> Result<()> {
    let width = block.len().max(1);
    out.par_chunks_mut(ROWS_EXPANDED * width).enumerate().try_for_each(|(index, out)| {
        let first = rows.start + index * ROWS_EXPANDED;
        out.chunks_exact_mut(width).zip(first..).try_for_each(|(out, row)| right.expand(row, block.clone(), out))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::super::{Threads, multiply};
    use super::*;

    /// A matrix that is expanded from a copy.
    struct Copied<'a>(MatrixRef<'a>);

    impl ExpandRows for Copied<'_> {
        fn rows(&self) -> usize {
            self.0.rows
        }

        fn columns(&self) -> usize {
            self.0.columns
        }

        fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.0.values[row * self.0.row_stride..][columns]);
            Ok(())
        }
    }

    #[test]
    fn expanded_tiles_give_the_bits_of_the_whole_matrix() {
        for (inner, columns) in
            [(8, 8), (100, 33), (513, 64), (512, 255), (1030, 257), (1536, 700), (40, 5000), (64, 1)]
        {
            let weights = numbers(inner * columns, 5);
            let matrix = MatrixRef::new(&weights, columns, inner, inner);
            for rows in [1, 2, 7, 8, 9, 31, 64, 65, 200] {
                let values = numbers(rows * inner, 6);
                let left = MatrixRef::new(&values, rows, inner, inner);
                for accumulate in [false, true] {
                    let mut whole = numbers(rows * columns, 7);
                    let mut tiled = whole.clone();
                    multiply(&mut whole, left, matrix.transposed(), accumulate, Threads::All);
                    multiply_expanded(&mut tiled, left, &Copied(matrix), accumulate).expect("expands");
                    assert!(whole == tiled, "{rows} rows, {inner}x{columns}, {accumulate}");
                }
            }
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error() {
        struct Broken;
        impl ExpandRows for Broken {
            fn rows(&self) -> usize {
                300
            }

            fn columns(&self) -> usize {
                8
            }

            fn expand(&self, row: usize, _: Range<usize>, _: &mut [f32]) -> Result<()> {
                if row == 299 {
                    candle_core::bail!("unreadable");
                }
                Ok(())
            }
        }
        let (values, mut out) = (numbers(80, 1), vec![0.0; 3000]);
        multiply_expanded(&mut out, MatrixRef::new(&values, 10, 8, 8), &Broken, false)
            .expect_err("a row is unreadable");
    }
}
