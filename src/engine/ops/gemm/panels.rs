//! The operand of a product that lies in lanes, in panels: the numbers of as many lanes as a tile takes are next to each other.

use std::ops::Range;

use rayon::prelude::*;

use super::tile::{Operands, VectorUnit};
use super::{MatrixRef, Threads, inner_blocks};

/// Inner dimension that is rearranged at a time: the lanes' numbers stay in the first cache meanwhile.
const DEPTH_PACKED: usize = 64;

/// Some lanes of [`Panels`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Panel {
    /// Those that are there. The panel has room for whole vectors; the rest are zeros.
    pub(crate) lanes: Range<usize>,
    vectors: usize,
}

/// A matrix `[lanes, depth]`, rearranged.
#[derive(Debug)]
pub(crate) struct Panels {
    unit: VectorUnit,
    all: Vec<Panel>,
    depth: usize,
    /// `[depth, width of the panel]` of each panel, one after the other.
    values: Vec<f32>,
}

/// A panel with its values `[depth, width]`.
#[derive(Clone, Copy)]
pub(crate) struct PanelRef<'a> {
    unit: VectorUnit,
    vectors: usize,
    values: &'a [f32],
}

impl Panel {
    /// Lanes with those that are zero.
    pub(crate) fn width(&self, unit: VectorUnit) -> usize {
        self.vectors * unit.width()
    }

    /// So many lanes in panels. As wide as possible, but none of one vector beside wider ones than two: its tiles take a third longer for
    /// each lane.
    pub(crate) fn split(unit: VectorUnit, lanes: usize) -> Vec<Self> {
        let mut panels = Vec::new();
        let (mut start, vectors_max) = (0, unit.vectors_max());
        while start < lanes {
            let needed = (lanes - start).div_ceil(unit.width());
            let would_be_alone = needed == vectors_max + 1 && vectors_max > 2;
            let vectors = if would_be_alone { vectors_max - 1 } else { needed.min(vectors_max) };
            let end = (start + vectors * unit.width()).min(lanes);
            panels.push(Self { lanes: start..end, vectors });
            start = end;
        }
        panels
    }
}

impl Panels {
    /// Rearranges a matrix whose rows are the lanes.
    pub(crate) fn of(unit: VectorUnit, matrix: MatrixRef, threads: Threads) -> Self {
        matrix.assert_in_bounds();
        let panels = Panel::split(unit, matrix.rows);
        let width_of_all: usize = panels.iter().map(|panel| panel.width(unit)).sum();
        let mut values = vec![0.0; width_of_all * matrix.columns];
        let mut rest = values.as_mut_slice();
        let mut parts = Vec::with_capacity(panels.len());
        for panel in &panels {
            let (part, after) = rest.split_at_mut(panel.width(unit) * matrix.columns);
            parts.push((panel, part));
            rest = after;
        }
        match threads {
            Threads::One => parts.into_iter().for_each(|(panel, part)| panel.pack(unit, matrix, part)),
            Threads::All => parts.into_par_iter().for_each(|(panel, part)| panel.pack(unit, matrix, part)),
        }
        Self { unit, all: panels, depth: matrix.columns, values }
    }

    pub(crate) fn panels(&self) -> &[Panel] {
        &self.all
    }

    /// Lanes of a panel with those that are zero.
    pub(super) fn width(&self, panel: &Panel) -> usize {
        panel.width(self.unit)
    }

    /// A panel's values.
    pub(crate) fn values(&self, panel: &Panel) -> PanelRef<'_> {
        // All panels before it are full.
        let start = panel.lanes.start * self.depth;
        let count = panel.width(self.unit) * self.depth;
        PanelRef { unit: self.unit, vectors: panel.vectors, values: &self.values[start..start + count] }
    }
}

impl Panel {
    /// Writes the numbers of its lanes, rows of a matrix, to `out [depth, width]`.
    pub(crate) fn pack(&self, unit: VectorUnit, matrix: MatrixRef, out: &mut [f32]) {
        let width = self.width(unit);
        let MatrixRef { values, columns: depth, row_stride, column_stride, .. } = matrix;
        assert!(column_stride > 0, "one number cannot stand for many");
        if row_stride == 1 {
            for (at, out) in out.chunks_exact_mut(width).enumerate() {
                let from = at * column_stride + self.lanes.start;
                out[..self.lanes.len()].copy_from_slice(&values[from..from + self.lanes.len()]);
            }
            return;
        }
        for (block, out) in out.chunks_mut(width * DEPTH_PACKED).enumerate() {
            let first = block * DEPTH_PACKED;
            let count = DEPTH_PACKED.min(depth - first);
            for (lane, row) in self.lanes.clone().enumerate() {
                let from = row * row_stride + first * column_stride;
                let numbers = values[from..=from + (count - 1) * column_stride].iter().step_by(column_stride);
                for (out, number) in out.chunks_exact_mut(width).zip(numbers) {
                    out[lane] = *number;
                }
            }
        }
    }
}

impl<'a> PanelRef<'a> {
    /// Of values `[depth, width]`, as a product of other panels has left them.
    pub(crate) fn new(unit: VectorUnit, panel: &Panel, values: &'a [f32]) -> Self {
        Self { unit, vectors: panel.vectors, values }
    }

    /// Writes the products of the lanes with each row of a matrix `[rows, depth]` to `totals [rows, width]`, or adds them. A sum is taken
    /// block by block of the inner dimension, as everywhere.
    pub(crate) fn multiply(self, rows: MatrixRef, totals: &mut [f32], is_added: bool) {
        let width = self.vectors * self.unit.width();
        assert_eq!(self.values.len(), rows.columns * width, "inner dimensions differ");
        let lanes = |depth: usize| (self.values[depth * width..].as_ptr(), std::ptr::null());
        // SAFETY: the panel has `width` lanes of each number of the inner dimension.
        #[expect(unsafe_code, reason = "tiles read and write through pointers")]
        unsafe {
            multiply((self.unit, self.vectors), lanes, rows, totals, is_added);
        }
    }
}

/// Lanes that are read where they are, in any places.
pub(crate) struct LanesInPlace<'a> {
    unit: VectorUnit,
    values: &'a [f32],
    /// Where the lanes of each number of the inner dimension begin, and the last of these.
    offsets: &'a [u32],
    last: usize,
}

impl<'a> LanesInPlace<'a> {
    pub(crate) fn new(unit: VectorUnit, values: &'a [f32], offsets: &'a [u32]) -> Self {
        Self { unit, values, offsets, last: offsets.iter().copied().max().unwrap_or(0) as usize }
    }

    /// Numbers behind the last lane that must be there, for panels that are not full.
    pub(crate) fn slack(unit: VectorUnit) -> usize {
        unit.vectors_max() * unit.width()
    }

    /// As [`PanelRef::multiply`], for the lanes of a panel; the offsets count from `start`.
    pub(crate) fn multiply(&self, panel: &Panel, start: usize, rows: MatrixRef, totals: &mut [f32]) {
        assert_eq!(self.offsets.len(), rows.columns, "inner dimensions differ");
        let start = start + panel.lanes.start;
        assert!(start + self.last + panel.width(self.unit) <= self.values.len(), "lanes beyond the end");
        let lanes = |depth: usize| (self.values[start..].as_ptr(), self.offsets[depth..].as_ptr());
        // SAFETY: from each offset on there are so many lanes, as was checked.
        #[expect(unsafe_code, reason = "tiles read and write through pointers")]
        unsafe {
            multiply((self.unit, panel.vectors), lanes, rows, totals, false);
        }
    }
}

/// The products of some vectors of lanes with each row of a matrix. `lanes` says where the numbers from one of the inner dimension on are,
/// and their offsets.
///
/// # Safety
/// There must be so many lanes of each number of the inner dimension.
#[expect(unsafe_code, reason = "tiles read and write through pointers")]
unsafe fn multiply(
    (unit, vectors): (VectorUnit, usize),
    lanes: impl Fn(usize) -> (*const f32, *const u32),
    rows: MatrixRef,
    totals: &mut [f32],
    is_added: bool,
) {
    let width = vectors * unit.width();
    assert_eq!(totals.len(), rows.rows * width, "the totals have another size");
    rows.assert_in_bounds();
    for block in inner_blocks(rows.columns, unit.inner_block()) {
        let (lanes, offsets) = lanes(block.start);
        let mut row = 0;
        while row < rows.rows {
            let start = (row * rows.row_stride + block.start * rows.column_stride).min(rows.values.len());
            let operands = Operands {
                depth: block.len(),
                lanes,
                offsets,
                rows: rows.values[start..].as_ptr(),
                row_stride: rows.row_stride,
                depth_stride: rows.column_stride,
                totals: totals[row * width..].as_mut_ptr(),
                is_first: block.start == 0 && !is_added,
            };
            let count = (rows.rows - row).min(unit.rows_max());
            // SAFETY: the processor has the unit, or there would be none; the caller promises the lanes, and the rest was checked above. The
            // totals are borrowed mutably, so they overlap nothing.
            row += unsafe { unit.multiply(vectors, count, &operands) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_all_lanes_once_and_none_is_narrow_beside_others() {
        for unit in VectorUnit::all() {
            for lanes in 0..200 {
                let panels = Panel::split(unit, lanes);
                let found: Vec<usize> = panels.iter().flat_map(|panel| panel.lanes.clone()).collect();
                assert_eq!(found, (0..lanes).collect::<Vec<_>>());
                let (last, others) = panels.split_last().map_or((None, &[][..]), |(last, others)| (Some(last), others));
                let is_narrow = |panel: &Panel| panel.vectors == 1;
                let is_last_narrow = !others.is_empty() && last.is_some_and(is_narrow);
                assert!(!others.iter().any(is_narrow), "{lanes} lanes: {panels:?}");
                assert!(!is_last_narrow || unit.vectors_max() == 2, "{lanes} lanes: {panels:?}");
                let full = panels.iter().rev().skip(1).all(|panel| panel.lanes.len() == panel.width(unit));
                assert!(full, "{lanes} lanes: {panels:?}");
            }
        }
    }
}
