//! Batch-invariant products of matrices on the CPU: an output row has the same bits however many rows there are, on however many
//! threads, and by whichever unit with fused operations the processor has.
//!
//! Each output is a chain of fused multiplications and additions over a block of the inner dimension in order, and the sum of its
//! blocks in order. That is all that decides its bits: not the tile that it is computed in, nor what is beside it.

pub(crate) mod expanded;
mod library;
pub(crate) mod panels;
pub(crate) mod rounded;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use panels::{Panel, Panels};
pub(crate) use tile::VectorUnit;

/// Length of a block of the inner dimension. A boundary is a rounding.
const INNER_BLOCK: usize = 512;

/// Rows that are multiplied with one panel before the next: a panel's numbers are read once for all of them.
const ROWS_OF_A_TASK: usize = 96;

/// Most bytes of an operand that are rearranged at a time, and most that are rounded before that. They belong to the workspace of the
/// plan for memory. Less in tests, so that operands have several parts.
const PACKED_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// As much of that for each thread as the cache that all share may hold, if each part costs nothing but reading the other operand again.
const PACKED_BYTES_OF_A_THREAD: usize = 8 << 20;

/// Lanes at a time are a multiple of this, which panels of all units fill.
const LANES_STEP: usize = 192;

/// Tasks for each thread, at least, where there are so many panels: whoever has one more than others makes them wait for no longer than
/// a few hundredths.
const TASKS_PER_THREAD: usize = 16;

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

    /// Some of the rows.
    pub(crate) fn of_rows(self, rows: &Range<usize>) -> Self {
        let start = (rows.start * self.row_stride).min(self.values.len());
        Self { values: &self.values[start..], rows: rows.len(), ..self }
    }

    fn assert_in_bounds(&self) {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.values.len(), "a matrix is larger than its values");
        }
    }
}

/// Where a product is written: contiguous rows that start `stride` apart.
pub(crate) struct Destination<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Onto<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// A number for each column; the destination is overwritten.
    Bias(&'a [f32]),
    /// What the destination holds.
    Destination,
}

/// Whether a product may use the thread pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// This thread only: for callers that are parallel themselves.
    One,
    /// All threads of the pool.
    All,
}

/// `destination = onto + left × right`, in row-major order.
pub(crate) fn multiply(destination: &mut [f32], left: MatrixRef, right: MatrixRef, onto: Onto, threads: Threads) {
    assert_eq!(destination.len(), left.rows * right.columns, "the destination has another size");
    multiply_into(Destination { values: destination, stride: right.columns }, left, right, onto, threads);
}

/// [`multiply`] into some columns of a wider matrix; the others are unchanged.
pub(crate) fn multiply_into(destination: Destination, left: MatrixRef, right: MatrixRef, onto: Onto, threads: Threads) {
    by(VectorUnit::of_this_processor(), destination, left, right, (onto, threads));
}

/// By a vector unit, or without one by the `gemm` crate.
fn by(
    unit: Option<VectorUnit>,
    mut destination: Destination,
    left: MatrixRef,
    right: MatrixRef,
    (onto, threads): (Onto, Threads),
) {
    assert_eq!(left.columns, right.rows, "inner dimensions differ");
    left.assert_in_bounds();
    right.assert_in_bounds();
    if left.rows == 0 || right.columns == 0 {
        return;
    }
    let needed = (left.rows - 1) * destination.stride + right.columns;
    assert!(right.columns <= destination.stride && needed <= destination.values.len(), "the destination is too small");
    onto.assert_fits(right.columns);
    let Some(unit) = unit else { return library::multiply(destination, left, right, onto, threads) };
    // The operand in lanes is the one whose numbers are next to each other in the output, if that needs no turning.
    let (lanes, rows, target) = if right.column_stride == 1 && right.row_stride != 1 {
        (right.transposed(), left, Target::with_lanes_in_rows(&mut destination))
    } else {
        (left, right.transposed(), Target::with_lanes_in_columns(&mut destination))
    };
    let bytes_at_once = (PACKED_BYTES_OF_A_THREAD * rayon::current_num_threads()).min(PACKED_BYTES_MAX);
    for lanes_at_once in lanes_at_once([lanes.rows, lanes.columns], bytes_at_once) {
        let panels = Panels::of(unit, lanes.of_rows(&lanes_at_once), threads);
        let onto = if target.has_lanes_in_rows { onto.of_columns(&lanes_at_once) } else { onto };
        // SAFETY: the destination is borrowed mutably, and has an element for each lane and row, as was checked above.
        #[expect(unsafe_code, reason = "tasks write to parts of one matrix")]
        unsafe {
            target.beginning_at(lanes_at_once.start).multiply_all(&panels, rows, onto, threads);
        }
    }
}

/// The lanes of a matrix of so many lanes and columns, in parts that are rearranged at a time, of at most so many bytes if possible. All
/// but the last are equally large, so that the memory of one serves the next.
fn lanes_at_once([lanes, columns]: [usize; 2], bytes_max: usize) -> impl Iterator<Item = Range<usize>> {
    let most = bytes_max / (size_of::<f32>() * columns.max(1)) / LANES_STEP * LANES_STEP;
    let parts = lanes.div_ceil(most.max(LANES_STEP)).max(1);
    let at_once = lanes.div_ceil(parts).next_multiple_of(LANES_STEP);
    (0..lanes).step_by(at_once).map(move |start| start..(start + at_once).min(lanes))
}

impl<'a> Onto<'a> {
    /// A bias, if there is one.
    pub(crate) fn of(bias: Option<&'a [f32]>) -> Self {
        bias.map_or(Self::Nothing, Self::Bias)
    }

    /// For some columns alone.
    fn of_columns(&self, columns: &Range<usize>) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[columns.clone()]),
            other => *other,
        }
    }

    fn assert_fits(&self, columns: usize) {
        if let Self::Bias(bias) = self {
            assert_eq!(bias.len(), columns, "the bias has another size");
        }
    }
}

/// All panels with all rows, in parts: some rows with all panels or, where that would be too few parts, with some.
fn tasks(panels: &[Panel], rows: usize, threads: Threads) -> Vec<(&[Panel], Range<usize>)> {
    let blocks = rows.div_ceil(ROWS_OF_A_TASK);
    let wanted = match threads {
        Threads::One => 1,
        Threads::All => TASKS_PER_THREAD * rayon::current_num_threads(),
    };
    let panels_of_a_task = panels.len().div_ceil(wanted.div_ceil(blocks)).max(1);
    let starts = (0..rows).step_by(ROWS_OF_A_TASK);
    starts
        .flat_map(|start| {
            let rows = start..(start + ROWS_OF_A_TASK).min(rows);
            panels.chunks(panels_of_a_task).map(move |panels| (panels, rows.clone()))
        })
        .collect()
}

/// A matrix that several tasks write to: element (lane, row) is at `lane × lane_stride + row × row_stride`.
struct Target {
    start: *mut f32,
    lane_stride: usize,
    row_stride: usize,
    /// Whether the lanes of a row are next to each other, instead of the rows of a lane.
    has_lanes_in_rows: bool,
}

// SAFETY: whoever writes promises that nobody else uses the same elements.
#[expect(unsafe_code, reason = "tasks write to parts of one matrix")]
unsafe impl Sync for Target {}

impl Target {
    fn with_lanes_in_rows(destination: &mut Destination) -> Self {
        Self {
            start: destination.values.as_mut_ptr(),
            lane_stride: 1,
            row_stride: destination.stride,
            has_lanes_in_rows: true,
        }
    }

    fn with_lanes_in_columns(destination: &mut Destination) -> Self {
        Self {
            start: destination.values.as_mut_ptr(),
            lane_stride: destination.stride,
            row_stride: 1,
            has_lanes_in_rows: false,
        }
    }

    /// The part from a lane on.
    fn beginning_at(&self, lane: usize) -> Self {
        Self { start: self.start.wrapping_add(lane * self.lane_stride), ..*self }
    }

    /// Multiplies all panels with all rows.
    ///
    /// # Safety
    /// The matrix must have these lanes and rows, and nobody else may use it meanwhile.
    #[expect(unsafe_code, reason = "tasks write to parts of one matrix")]
    unsafe fn multiply_all(&self, panels: &Panels, rows: MatrixRef, onto: Onto, threads: Threads) {
        let run = |panels_of_task: &[Panel], rows_of_task: Range<usize>, totals: &mut Vec<f32>| {
            let rows = rows.of_rows(&rows_of_task);
            for panel in panels_of_task {
                // SAFETY: as the caller promises; no two tasks have lanes and rows in common.
                unsafe { self.multiply((panels, panel), (rows, rows_of_task.start), onto, totals) };
            }
        };
        let tasks = tasks(panels.panels(), rows.rows, threads);
        match threads {
            Threads::One => {
                let mut totals = Vec::new();
                for (panels, rows) in tasks {
                    run(panels, rows, &mut totals);
                }
            }
            Threads::All => {
                tasks.into_par_iter().for_each_init(Vec::new, |totals, (panels, rows)| run(panels, rows, totals));
            }
        }
    }

    /// Multiplies a panel with some rows, the first of which is `first_row` of the matrix. `totals` is memory that a thread reuses.
    ///
    /// # Safety
    /// The matrix must have these lanes and rows, and nobody else may use their elements meanwhile.
    #[expect(unsafe_code, reason = "tasks write to parts of one matrix")]
    unsafe fn multiply(
        &self,
        (panels, panel): (&Panels, &Panel),
        (rows, first_row): (MatrixRef, usize),
        onto: Onto,
        totals: &mut Vec<f32>,
    ) {
        let own = first_row..first_row + rows.rows;
        let width = panels.width(panel);
        totals.resize(rows.rows * width, 0.0);
        match onto {
            Onto::Nothing => {}
            Onto::Bias(bias) if self.has_lanes_in_rows => {
                let bias = &bias[panel.lanes.clone()];
                totals.chunks_exact_mut(width).for_each(|totals| totals[..bias.len()].copy_from_slice(bias));
            }
            Onto::Bias(bias) => {
                let rows = totals.chunks_exact_mut(width).zip(&bias[own.clone()]);
                rows.for_each(|(totals, bias)| totals.fill(*bias));
            }
            // SAFETY: as the caller promises.
            Onto::Destination => unsafe { self.each(panel, own.clone(), totals, |element, total| *total = *element) },
        }
        panels.values(panel).multiply(rows, totals, !matches!(onto, Onto::Nothing));
        // SAFETY: as the caller promises.
        unsafe { self.each(panel, own, totals, |element, total| *element = *total) };
    }

    /// Calls `copy` with each element of some lanes and rows, and its total in `[rows, width of the panel]`.
    ///
    /// # Safety
    /// As for [`Self::multiply`].
    #[expect(unsafe_code, reason = "tasks write to parts of one matrix")]
    #[inline(always)]
    unsafe fn each(&self, panel: &Panel, rows: Range<usize>, totals: &mut [f32], copy: impl Fn(&mut f32, &mut f32)) {
        let width = totals.len() / rows.len();
        let element = |lane: usize, row: usize| {
            let element = self.start.wrapping_add(lane * self.lane_stride + row * self.row_stride);
            // SAFETY: as the caller promises.
            unsafe { &mut *element }
        };
        // The inner loop is along the matrix's own rows.
        if self.has_lanes_in_rows {
            for (row, totals) in rows.zip(totals.chunks_exact_mut(width)) {
                panel.lanes.clone().zip(totals).for_each(|(lane, total)| copy(element(lane, row), total));
            }
            return;
        }
        for (index, lane) in panel.lanes.clone().enumerate() {
            for (row, totals) in rows.clone().zip(totals.chunks_exact_mut(width)) {
                copy(element(lane, row), &mut totals[index]);
            }
        }
    }
}

/// The inner dimension in blocks of a length. One, empty, where there is no inner dimension.
fn inner_blocks(inner: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inner.div_ceil(length).max(1)).map(move |block| {
        let start = block * length;
        start..(start + length).min(inner)
    })
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

    fn units() -> impl Iterator<Item = Option<VectorUnit>> {
        VectorUnit::all().map(Some).chain([None])
    }

    const SHAPES: [(usize, usize); 12] = [
        (8, 8),
        (64, 64),
        (64, 320),
        (100, 33),
        (513, 64),
        (1536, 64),
        (3072, 64),
        (1030, 65),
        (16, 131),
        (1, 1),
        (2, 64),
        (514, 64),
    ];

    /// Rows have the same bits alone, in smaller batches and in a batch of all, by every vector unit and by none, and whichever
    /// operand is in lanes.
    #[test]
    fn a_row_has_the_same_bits_alone_and_batched() {
        for (inner, columns) in SHAPES {
            let rows = 300;
            let left = numbers(rows * inner, 1);
            let right = numbers(inner * columns, 2);
            let weight = MatrixRef::new(&right, columns, inner, inner).transposed();
            let turned: Vec<f32> = (0..inner * columns).map(|at| right[at % columns * inner + at / columns]).collect();
            let turned = MatrixRef::new(&turned, inner, columns, columns);
            let product = |unit, right: MatrixRef, (first, count): (usize, usize), threads| {
                let mut out = vec![0.0; count * columns];
                let rows = MatrixRef::new(&left[first * inner..], count, inner, inner);
                let destination = Destination { values: &mut out, stride: columns };
                by(unit, destination, rows, right, (Onto::Nothing, threads));
                out
            };
            let batched = product(None, weight, (0, rows), Threads::All);
            for count in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 48, 63, 64, 65, 81, 127, 128, 200] {
                for first in [0, 1, 37, 99] {
                    let expected = &batched[first * columns..(first + count) * columns];
                    for unit in units() {
                        for (right, threads) in [(weight, Threads::One), (turned, Threads::All)] {
                            let alone = product(unit, right, (first, count), threads);
                            assert!(alone == expected, "{count} rows from {first}, {inner}x{columns}, {unit:?}");
                        }
                    }
                }
            }
        }
    }

    /// Into the middle of a wider matrix, onto what is there.
    #[test]
    fn columns_of_a_wider_matrix_are_changed_and_no_others() {
        let (rows, inner, columns, stride) = (50, 600, 21, 40);
        let (left, right) = (numbers(rows * inner, 3), numbers(columns * inner, 4));
        let (left, right) = (MatrixRef::new(&left, rows, inner, inner), MatrixRef::new(&right, columns, inner, inner));
        let before = numbers(rows * stride, 5);
        let mut added: Vec<f32> = before.chunks(stride).flat_map(|row| row[7..7 + columns].to_vec()).collect();
        multiply(&mut added, left, right.transposed(), Onto::Destination, Threads::All);
        for unit in units() {
            let mut out = before.clone();
            let destination = Destination { values: &mut out[7..], stride };
            by(unit, destination, left, right.transposed(), (Onto::Destination, Threads::All));
            for (row, (out, before)) in out.chunks(stride).zip(before.chunks(stride)).enumerate() {
                assert_eq!(out[7..7 + columns], added[row * columns..][..columns], "row {row}, {unit:?}");
                assert_eq!((&out[..7], &out[7 + columns..]), (&before[..7], &before[7 + columns..]), "row {row}");
            }
        }
    }

    #[test]
    fn a_bias_is_what_a_product_is_added_to() {
        // In several parts, whichever operand is in lanes.
        let (rows, inner, columns) = (210, 1400, 400);
        let (left, right) = (numbers(rows * inner, 6), numbers(columns * inner, 7));
        let left = MatrixRef::new(&left, rows, inner, inner);
        let bias = numbers(columns, 8);
        // As it lies, and turned: other operands are in lanes.
        for right in [
            MatrixRef::new(&right, columns, inner, inner).transposed(),
            MatrixRef::new(&right, inner, columns, columns),
        ] {
            let mut expected = bias.repeat(rows);
            multiply(&mut expected, left, right, Onto::Destination, Threads::One);
            for unit in units() {
                let mut out = vec![f32::NAN; rows * columns];
                let destination = Destination { values: &mut out, stride: columns };
                by(unit, destination, left, right, (Onto::Bias(&bias), Threads::All));
                assert!(out == expected, "{unit:?}");
            }
        }
    }

    /// Every part of the product is in one task.
    #[test]
    fn tasks_are_all_panels_with_all_rows_once() {
        let Some(unit) = VectorUnit::of_this_processor() else { return };
        for (lanes, rows) in [(1, 1), (1, 1000), (768, 16), (768, 3072), (300, 129)] {
            let panels = Panel::split(unit, lanes);
            for threads in [Threads::One, Threads::All] {
                let mut times = vec![0; lanes * rows];
                for (panels, own) in tasks(&panels, rows, threads) {
                    for lane in panels.iter().flat_map(|panel| panel.lanes.clone()) {
                        own.clone().for_each(|row| times[lane * rows + row] += 1);
                    }
                }
                assert!(times.iter().all(|&times| times == 1), "{lanes} lanes, {rows} rows, {threads:?}");
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
        multiply(&mut out, MatrixRef::new(&left, rows, inner, inner), right_matrix, Onto::Destination, Threads::One);
        for row in 0..rows {
            for column in 0..columns {
                let exact: f64 =
                    (0..inner).map(|i| f64::from(left[row * inner + i]) * f64::from(right[i * columns + column])).sum();
                assert!((f64::from(out[row * columns + column]) - 1.0 - exact).abs() < 1e-4);
            }
        }
    }
}
