//! A product with a matrix whose rows are expanded a few at a time, with the bits of the product with the whole matrix.

use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::panels::Panels;
use super::{
    Destination, MatrixRef, Onto, PACKED_BYTES_MAX, ROWS_OF_A_TASK, Target, Threads, VectorUnit, lanes_at_once, library,
};

/// Bytes that a thread expands at a time, which its own cache holds beside a panel.
const BYTES_OF_A_TASK: usize = 1 << 20;

/// Rows of a task are a multiple of this.
const ROWS_STEP: usize = 12;

/// A matrix whose rows are expanded when they are multiplied.
pub(crate) trait ExpandRows: Sync {
    fn rows(&self) -> usize;

    fn columns(&self) -> usize;

    /// Writes some columns of a row to `out`, which is as long.
    ///
    /// # Errors
    /// When the row cannot be read.
    fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// A row as its numbers in bf16, little-endian, where it is kept so.
    fn bf16_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }
}

/// `destination = onto + left × the transpose of right`, in row-major order, on all threads. With the bits of [`super::multiply`] of the
/// expanded matrix, of which each thread has a few rows in memory at a time.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn multiply_expanded(
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    onto: Onto,
) -> Result<()> {
    by(VectorUnit::of_this_processor(), destination, left, right, onto)
}

pub(super) fn by(
    unit: Option<VectorUnit>,
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    onto: Onto,
) -> Result<()> {
    let (rows, inner, columns) = (left.rows, left.columns, right.rows());
    assert_eq!(inner, right.columns(), "inner dimensions differ");
    assert_eq!(destination.len(), rows * columns, "the destination has another size");
    left.assert_in_bounds();
    onto.assert_fits(columns);
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let rows_of_task = (BYTES_OF_A_TASK / (size_of::<f32>() * inner.max(1))).min(ROWS_OF_A_TASK);
    let rows_of_task = (rows_of_task / ROWS_STEP * ROWS_STEP).max(ROWS_STEP);
    let Some(unit) = unit else {
        // Of the same width, so that none is narrow: the crate multiplies a single column in another way.
        let tiles = columns.div_ceil(rows_of_task);
        let mut expanded = Vec::new();
        return (0..tiles).try_for_each(|tile| {
            let own = columns * tile / tiles..columns * (tile + 1) / tiles;
            let tile = expand(right, &own, &mut expanded)?.transposed();
            let destination = Destination { values: &mut destination[own.start..], stride: columns };
            library::multiply(destination, left, tile, onto.of_columns(&own), Threads::All);
            Ok(())
        });
    };
    let target = Target::with_lanes_in_columns(&mut Destination { values: destination, stride: columns });
    let starts: Vec<usize> = (0..columns).step_by(rows_of_task).collect();
    lanes_at_once([left.rows, left.columns], PACKED_BYTES_MAX).try_for_each(|lanes_at_once| {
        let panels = Panels::of(unit, left.of_rows(&lanes_at_once), Threads::All);
        let target = target.beginning_at(lanes_at_once.start);
        starts.par_iter().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(expanded, totals), &start| {
                let own = start..(start + rows_of_task).min(columns);
                let tile = expand(right, &own, expanded)?;
                for panel in panels.panels() {
                    // SAFETY: the destination has an element for each lane and row, and each task has rows of its own.
                    #[expect(unsafe_code, reason = "tasks write to columns of one matrix")]
                    unsafe {
                        target.multiply((&panels, panel), (tile, own.start), onto, totals);
                    }
                }
                Ok(())
            },
        )
    })
}

/// Some rows, expanded into memory that a thread reuses.
fn expand<'a>(right: &dyn ExpandRows, rows: &Range<usize>, expanded: &'a mut Vec<f32>) -> Result<MatrixRef<'a>> {
    let columns = right.columns();
    expanded.resize(rows.len() * columns, 0.0);
    for (row, out) in rows.clone().zip(expanded.chunks_exact_mut(columns.max(1))) {
        right.expand(row, 0..columns, out)?;
    }
    Ok(MatrixRef::new(expanded, rows.len(), columns, columns))
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
                let bias = numbers(columns, 8);
                for (onto, what) in
                    [(Onto::Nothing, "nothing"), (Onto::Bias(&bias), "bias"), (Onto::Destination, "itself")]
                {
                    let mut whole = numbers(rows * columns, 7);
                    let before = whole.clone();
                    multiply(&mut whole, left, matrix.transposed(), onto, Threads::All);
                    for unit in VectorUnit::all().map(Some).chain([None]) {
                        let mut tiled = before.clone();
                        by(unit, &mut tiled, left, &Copied(matrix), onto).expect("expands");
                        assert!(whole == tiled, "{rows} rows, {inner}x{columns}, {what}, {unit:?}");
                    }
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
        multiply_expanded(&mut out, MatrixRef::new(&values, 10, 8, 8), &Broken, Onto::Nothing)
            .expect_err("a row is unreadable");
    }
}
