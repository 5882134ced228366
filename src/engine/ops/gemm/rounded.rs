//! A product of numbers that are rounded to bf16, with sums in f32: lossy, and twice as fast where the processor multiplies bf16.
//!
//! Numbers are taken in pairs, and of a pair the product of the second is added first: so AVX-512's instruction does it, and so the same
//! bits are had without it, but for sums near the smallest normal number of f32, 1e-38: what is below it is zero for the instruction.

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::expanded::{self, ExpandRows};
use super::{MatrixRef, Onto, PACKED_BYTES_MAX, VectorUnit, lanes_at_once};
use crate::engine::ops::vectorized;

/// Numbers that are expanded at a time: a multiple of every format's blocks.
const EXPANDED_AT_ONCE: usize = 512;

/// Why bf16 is no faster than f32 on this processor. `None`: it is.
#[must_use]
pub fn why_bf16_is_no_faster() -> Option<&'static str> {
    let words = "this processor has no AVX-512 BF16, so that bf16 saves memory and no time";
    VectorUnit::of_pairs().is_none().then_some(words)
}

/// `destination = onto + left × the transpose of right`, of both rounded to bf16, in row-major order, on all threads. A row has the
/// same bits however many rows there are, on every processor.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn multiply_rounded(
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    onto: Onto,
) -> Result<()> {
    by(Form::of_this_processor(), destination, left, right, onto)
}

fn by(
    (unit, form): (Option<VectorUnit>, Form),
    destination: &mut [f32],
    left: MatrixRef,
    right: &dyn ExpandRows,
    onto: Onto,
) -> Result<()> {
    assert_eq!(left.column_stride, 1, "rows are rounded where they are contiguous");
    if left.rows == 0 {
        return Ok(());
    }
    let (width, columns) = (form.width(left.columns), right.rows());
    let mut rounded = Vec::new();
    // As many rows as are rearranged at a time.
    lanes_at_once([left.rows, width], PACKED_BYTES_MAX).try_for_each(|rows| {
        rounded.resize(rows.len() * width, 0.0);
        rounded.par_chunks_exact_mut(width.max(1)).zip(rows.clone()).for_each(|(out, row)| {
            form.round(&left.values[row * left.row_stride..][..left.columns], out);
        });
        let left = MatrixRef::new(&rounded, rows.len(), width, width);
        let destination = &mut destination[rows.start * columns..rows.end * columns];
        expanded::by(unit, destination, left, &RoundedRows { rows: right, form }, onto)
    })
}

/// What a product multiplies instead of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Two numbers in bf16 in the place of one in f32, the first in the lower half.
    Pairs,
    /// Numbers that are rounded to bf16, of each pair the second before the first.
    Numbers,
}

impl Form {
    /// What this processor multiplies fastest, and the unit for it; `None`: by the `gemm` crate.
    pub(crate) fn of_this_processor() -> (Option<VectorUnit>, Self) {
        match VectorUnit::of_pairs() {
            Some(unit) => (Some(unit), Self::Pairs),
            None => (VectorUnit::of_this_processor(), Self::Numbers),
        }
    }

    /// How many there are of so many numbers. The last pair may have a zero.
    pub(crate) fn width(self, numbers: usize) -> usize {
        match self {
            Self::Pairs => numbers.div_ceil(2),
            Self::Numbers => numbers.next_multiple_of(2),
        }
    }

    /// Rounds numbers, the first of which begins a pair.
    pub(crate) fn round(self, numbers: &[f32], out: &mut [f32]) {
        let (pairs, rest) = numbers.as_chunks();
        let (now, last) = out.split_at_mut(self.width(2 * pairs.len()));
        self.round_pairs(pairs, now);
        if let [number] = rest {
            self.round_pairs(&[[*number, 0.0]], last);
        }
    }

    /// Rounds a matrix's columns, in which pairs are one below the other. Writes `[self.width(rows), columns]`.
    pub(crate) fn round_columns(self, matrix: MatrixRef, out: &mut [f32]) {
        let of_a_pair = self.width(2) * matrix.columns;
        for (pair, out) in out.chunks_exact_mut(of_a_pair.max(1)).enumerate() {
            self.round_pair_of_rows(matrix, pair, out);
        }
    }

    /// Of [`Self::round_columns`] what is written for a pair of rows.
    pub(crate) fn round_pair_of_rows(self, matrix: MatrixRef, pair: usize, out: &mut [f32]) {
        let row = |row: usize| &matrix.values[row * matrix.row_stride..][..matrix.columns];
        let zeros;
        let second = if 2 * pair + 1 < matrix.rows {
            row(2 * pair + 1)
        } else {
            zeros = vec![0.0; matrix.columns];
            zeros.as_slice()
        };
        let first = row(2 * pair);
        match self {
            Self::Pairs => join_to_pairs(first, second, out),
            Self::Numbers => {
                let (before, after) = out.split_at_mut(matrix.columns);
                round_each(second, before);
                round_each(first, after);
            }
        }
    }

    fn round_pairs(self, pairs: &[[f32; 2]], out: &mut [f32]) {
        match self {
            Self::Pairs => round_to_pairs(pairs, out),
            Self::Numbers => round_to_numbers(pairs, out),
        }
    }
}

vectorized! {
    fn round_to_pairs<'a>(pairs: &'a [[f32; 2]], out: &'a mut [f32]) {
        for (out, [first, second]) in out.iter_mut().zip(pairs) {
            *out = f32::from_bits(rounded(*first) >> 16 | rounded(*second));
        }
    }

    fn round_to_numbers<'a>(pairs: &'a [[f32; 2]], out: &'a mut [f32]) {
        for (out, [first, second]) in out.as_chunks_mut().0.iter_mut().zip(pairs) {
            *out = [f32::from_bits(rounded(*second)), f32::from_bits(rounded(*first))];
        }
    }

    fn join_to_pairs<'a>(first: &'a [f32], second: &'a [f32], out: &'a mut [f32]) {
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = f32::from_bits(rounded(*first) >> 16 | rounded(*second));
        }
    }

    /// Writes numbers in bf16, little-endian.
    pub(in crate::engine) fn round_to_bytes<'a>(numbers: &'a [f32], bytes: &'a mut [u8]) {
        for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
            let [_, _, lower, upper] = rounded(*number).to_le_bytes();
            *bytes = [lower, upper];
        }
    }

    fn round_each<'a>(numbers: &'a [f32], out: &'a mut [f32]) {
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = f32::from_bits(rounded(*number));
        }
    }
}

/// The bits of the nearest number in bf16, of the even one of two; zero for what is too small for a normal number. NaN stays NaN.
#[inline(always)]
fn rounded(number: f32) -> u32 {
    const UPPER: u32 = 0xffff_0000;
    const QUIET: u32 = 0x0040_0000;
    const SIGN: u32 = 0x8000_0000;
    let bits = number.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & UPPER;
    let or_nan = if number.is_nan() { bits & UPPER | QUIET } else { nearest };
    if number.abs() < f32::MIN_POSITIVE { bits & SIGN } else { or_nan }
}

/// Rows that are rounded when they are multiplied.
struct RoundedRows<'a> {
    rows: &'a dyn ExpandRows,
    form: Form,
}

impl ExpandRows for RoundedRows<'_> {
    fn rows(&self) -> usize {
        self.rows.rows()
    }

    fn columns(&self) -> usize {
        self.form.width(self.rows.columns())
    }

    /// Of whole rows alone.
    fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        if columns != (0..self.columns()) {
            bail!("columns {columns:?} of a row that is rounded as a whole");
        }
        if let (Form::Pairs, Some(bytes)) = (self.form, self.rows.bf16_row(row)) {
            let (pairs, rest) = bytes.as_chunks();
            for (out, pair) in out.iter_mut().zip(pairs) {
                *out = f32::from_bits(u32::from_le_bytes(*pair));
            }
            if let ([.., last], [lower, upper]) = (out, rest) {
                *last = f32::from_bits(u32::from_le_bytes([*lower, *upper, 0, 0]));
            }
            return Ok(());
        }
        let mut numbers = [0.0; EXPANDED_AT_ONCE];
        let width = self.rows.columns();
        for (start, out) in (0..width).step_by(EXPANDED_AT_ONCE).zip(out.chunks_mut(self.form.width(EXPANDED_AT_ONCE)))
        {
            let numbers = &mut numbers[..EXPANDED_AT_ONCE.min(width - start)];
            self.rows.expand(row, start..start + numbers.len(), numbers)?;
            self.form.round(numbers, out);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::bf16;

    use super::super::tests::numbers;
    use super::*;

    /// A matrix whose rows are expanded from a copy, or given in bf16.
    struct Copied {
        numbers: Vec<f32>,
        in_bf16: Option<Vec<u8>>,
        columns: usize,
    }

    impl Copied {
        fn new(numbers: Vec<f32>, columns: usize) -> Self {
            Self { numbers, in_bf16: None, columns }
        }

        /// The same numbers, as a file in bf16 has them.
        fn in_bf16(&self) -> Self {
            let bytes = self.numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect();
            Self { numbers: self.numbers.clone(), in_bf16: Some(bytes), columns: self.columns }
        }
    }

    impl ExpandRows for Copied {
        fn rows(&self) -> usize {
            self.numbers.len() / self.columns
        }

        fn columns(&self) -> usize {
            self.columns
        }

        fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.numbers[row * self.columns..][columns]);
            Ok(())
        }

        fn bf16_row(&self, row: usize) -> Option<&[u8]> {
            self.in_bf16.as_ref().map(|bytes| &bytes[2 * row * self.columns..][..2 * self.columns])
        }
    }

    /// The definition, a number at a time.
    fn product(left: &[f32], right: &[f32], bias: f32) -> f32 {
        let round = |number: &f32| bf16::from_f32(*number).to_f32();
        let mut total = bias;
        for (index, (left, right)) in left.chunks(512).zip(right.chunks(512)).enumerate() {
            let mut sum = 0.0_f32;
            for (left, right) in left.chunks(2).zip(right.chunks(2)) {
                for (left, right) in left.iter().zip(right).rev() {
                    sum = round(left).mul_add(round(right), sum);
                }
            }
            total = if index == 0 && bias == 0.0 { sum } else { total + sum };
        }
        total
    }

    pub(crate) fn ways() -> Vec<(Option<VectorUnit>, Form)> {
        let numbers = VectorUnit::all().map(Some).chain([None]).map(|unit| (unit, Form::Numbers));
        numbers.chain(VectorUnit::of_pairs().map(|unit| (Some(unit), Form::Pairs))).collect()
    }

    /// By every unit, in any batch, and whether the weights are in bf16 or expanded.
    #[test]
    fn a_product_of_rounded_numbers_has_the_same_bits_everywhere() {
        for (inner, columns) in [(64, 30), (65, 7), (1, 1), (2, 3), (511, 100), (1030, 20), (3072, 13)] {
            let rows = 70;
            let left = numbers(rows * inner, 1);
            let right = Copied::new(numbers(columns * inner, 2), inner);
            let bias = numbers(columns, 3);
            let element = |row: usize, column: usize, bias: f32| {
                product(&left[row * inner..][..inner], &right.numbers[column * inner..][..inner], bias)
            };
            for way in ways() {
                for (first, count) in [(0, rows), (3, 1), (10, 2), (17, 33), (5, 0)] {
                    let some = MatrixRef::new(&left[first * inner..], count, inner, inner);
                    for right in [&right, &right.in_bf16()] {
                        for onto in [Onto::Nothing, Onto::Bias(&bias)] {
                            let mut out = vec![f32::NAN; count * columns];
                            by(way, &mut out, some, right, onto).expect("multiplies");
                            for (index, &found) in out.iter().enumerate() {
                                let (row, column) = (first + index / columns, index % columns);
                                let bias = if let Onto::Bias(bias) = onto { bias[column] } else { 0.0 };
                                assert_eq!(
                                    found,
                                    element(row, column, bias),
                                    "{way:?} {inner}x{columns} {row} {column}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// Also on processors that do not multiply pairs.
    #[test]
    fn pairs_hold_the_same_numbers_as_numbers_alone() {
        // The second of each pair first, as they are in the other form.
        let unpacked = |pairs: &[f32], width: usize| -> Vec<u32> {
            let rows = pairs.chunks(width).flat_map(|row| {
                let second = row.iter().map(|pair| pair.to_bits() & 0xffff_0000);
                second.chain(row.iter().map(|pair| pair.to_bits() << 16))
            });
            rows.collect()
        };
        let bits = |numbers: &[f32]| -> Vec<u32> { numbers.iter().map(|number| number.to_bits()).collect() };
        for (rows, width) in [(1, 1), (2, 5), (5, 64), (7, 513), (8, 1030)] {
            let values = numbers(rows * width, 5);
            let in_columns = [Form::Pairs, Form::Numbers].map(|form| {
                let mut out = vec![f32::NAN; form.width(rows) * width];
                form.round_columns(MatrixRef::new(&values, rows, width, width), &mut out);
                out
            });
            assert_eq!(unpacked(&in_columns[0], width), bits(&in_columns[1]), "{rows}x{width}");
            let matrix = Copied::new(values, width);
            for matrix in [&matrix, &matrix.in_bf16()] {
                for row in 0..rows {
                    let in_rows = [Form::Pairs, Form::Numbers].map(|form| {
                        let rounded = RoundedRows { rows: matrix, form };
                        let mut out = vec![f32::NAN; rounded.columns()];
                        rounded.expand(row, 0..out.len(), &mut out).expect("expands");
                        out
                    });
                    assert_eq!(unpacked(&in_rows[0], 1), bits(&in_rows[1]), "row {row} of {rows}x{width}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_rounded_as_what_is_multiplied() {
        let values: Vec<f32> =
            numbers(101, 4).into_iter().chain([f32::MIN_POSITIVE * 0.999, -1e-40, f32::NAN]).collect();
        let mut bytes = vec![0; 2 * values.len()];
        round_to_bytes(&values, &mut bytes);
        for (bytes, value) in bytes.as_chunks().0.iter().zip(values) {
            assert_eq!(u32::from(u16::from_le_bytes(*bytes)) << 16, rounded(value), "{value:e}");
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_what_is_too_small_is_zero() {
        let normal = numbers(1000, 9).into_iter().chain([0.0, -0.0, f32::INFINITY, f32::MAX, 1.003_906_3, 1.011_718_8]);
        for number in normal {
            assert_eq!(
                f32::from_bits(rounded(number)).to_bits(),
                bf16::from_f32(number).to_f32().to_bits(),
                "{number}"
            );
        }
        assert_eq!(rounded(-1e-39), (-0.0_f32).to_bits());
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(
                f32::from_bits(rounded(nan)).is_nan() && rounded(nan).trailing_zeros() >= 16,
                "{:x}",
                nan.to_bits()
            );
        }
    }

    #[test]
    fn what_is_no_number_or_too_large_stays_so() {
        for way in ways() {
            for (number, expected) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY), (f32::MAX, f32::INFINITY)]
            {
                let left = [1.0, number, 1.0];
                let right = Copied::new(vec![1.0; 3], 3);
                let mut out = [0.0];
                by(way, &mut out, MatrixRef::new(&left, 1, 3, 3), &right, Onto::Nothing).expect("multiplies");
                assert_eq!(out[0].is_nan(), expected.is_nan(), "{way:?}");
                assert!(out[0].is_nan() || out[0] == expected, "{way:?}: {}", out[0]);
            }
        }
    }

    #[test]
    fn what_cannot_be_read_fails_the_product() {
        struct Unreadable;

        impl ExpandRows for Unreadable {
            fn rows(&self) -> usize {
                3
            }

            fn columns(&self) -> usize {
                4
            }

            fn expand(&self, row: usize, _: Range<usize>, _: &mut [f32]) -> Result<()> {
                if row == 1 {
                    bail!("no such row");
                }
                Ok(())
            }
        }
        let left = [1.0; 4];
        let mut out = [0.0; 3];
        let error = multiply_rounded(&mut out, MatrixRef::new(&left, 1, 4, 4), &Unreadable, Onto::Nothing);
        assert!(error.expect_err("unreadable").to_string().contains("no such row"));
    }
}
