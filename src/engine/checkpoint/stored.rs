//! A matrix in the host's memory as its file stores it: a half to an eighth of its size in f32.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Error, Result, bail};

use super::recipe::{Recipe, Segment};
use super::source::Blob;
use crate::engine::blocks::Coding;

/// A matrix whose numbers are expanded when they are asked for.
#[derive(Debug, Clone)]
pub(crate) struct StoredMatrix {
    /// Reads from memory.
    recipe: Recipe,
    rows: usize,
    columns: usize,
}

/// Rows of one coding.
pub(crate) struct StoredRows<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) rows: usize,
    pub(crate) coding: Coding<'a>,
}

impl StoredMatrix {
    /// Reads a matrix's bytes from its files.
    ///
    /// # Errors
    /// When it is no matrix, or a file cannot be read.
    pub(super) fn read(recipe: &Recipe) -> Result<Self> {
        let [rows, columns] = *recipe.shape.as_slice() else {
            bail!("a tensor of shape {:?} is no matrix", recipe.shape)
        };
        // Two segments may be parts of one tensor in the file.
        let mut extents = BTreeMap::<_, usize>::new();
        for segment in &recipe.segments {
            let extent = extents.entry(key(segment)).or_default();
            *extent = (*extent).max(segment.skipped + segment.count);
        }
        let mut copies = BTreeMap::new();
        let mut segments = Vec::with_capacity(recipe.segments.len());
        for segment in &recipe.segments {
            let extent = extents[&key(segment)];
            let (file, numbers) = if let Some(copy) = copies.get(&key(segment)) {
                Clone::clone(copy)
            } else {
                let bytes = segment.numbers.bytes(extent);
                let file = Arc::new(segment.file.part(segment.start, bytes).map_err(Error::msg)?);
                let copy = (file, segment.numbers.resident(extent).map_err(Error::msg)?);
                copies.insert(key(segment), copy.clone());
                copy
            };
            segments.push(Segment { file, start: 0, numbers, ..segment.clone() });
        }
        Ok(Self { recipe: Recipe { segments, dtype: DType::F32, shape: vec![rows, columns] }, rows, columns })
    }

    /// The rows of several matrices, one below the other.
    ///
    /// # Errors
    /// When they are not equally wide.
    pub(crate) fn joined(parts: Vec<Self>) -> Result<Self> {
        let columns = parts.first().map_or(0, |part| part.columns);
        if let Some(part) = parts.iter().find(|part| part.columns != columns) {
            bail!("matrices of {columns} and of {} columns", part.columns);
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        let segments = parts.into_iter().flat_map(|part| part.recipe.segments).collect();
        Ok(Self { recipe: Recipe { segments, dtype: DType::F32, shape: vec![rows, columns] }, rows, columns })
    }

    /// How many rows it has.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns it has.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Its rows, in parts with one coding each.
    ///
    /// # Errors
    /// When a part is not made of whole rows and blocks.
    pub(crate) fn parts(&self) -> Result<Vec<StoredRows<'_>>> {
        self.recipe.segments.iter().map(|segment| self.rows_of(segment)).collect()
    }

    fn rows_of<'a>(&self, segment: &'a Segment) -> Result<StoredRows<'a>> {
        let Segment { file, start, skipped, count, numbers } = segment;
        if !skipped.is_multiple_of(numbers.step()) || !count.is_multiple_of(self.columns.max(1)) {
            bail!("{count} numbers from {skipped} on are no whole rows of {}, or begin inside a block", self.columns);
        }
        let Some(codes) = file.slice(start + numbers.bytes(*skipped), numbers.bytes(*count)) else {
            bail!("a matrix is longer than its bytes");
        };
        let coding = numbers.coding(*skipped, *count).map_err(Error::msg)?;
        Ok(StoredRows { codes, rows: count / self.columns.max(1), coding })
    }

    /// Writes some columns of a row to `out`, which is as long, with the bits of the format's reference dequantizer.
    ///
    /// # Errors
    /// When there are not so many.
    pub(crate) fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        if row >= self.rows || columns.end > self.columns || columns.len() != out.len() {
            bail!("row {row}, columns {columns:?} of a matrix of {}x{}", self.rows, self.columns);
        }
        self.recipe.expand(row * self.columns + columns.start, out).map_err(Error::msg)
    }

    /// The bytes of a row, where it is stored in bf16 in one piece.
    pub(crate) fn bf16_row(&self, row: usize) -> Option<&[u8]> {
        self.recipe.bf16(row * self.columns, self.columns)
    }
}

/// What tells a tensor in a file from others.
fn key(segment: &Segment) -> (*const Blob, usize) {
    (Arc::as_ptr(&segment.file), segment.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::blocks::BlockType;
    use crate::engine::checkpoint::numbers::{BlockScales, FourBits, Int8, NestedScales, Numbers};

    const ROWS: usize = 6;
    /// With 6 rows 9 blocks of 256, of which the half is no whole number.
    const COLUMNS: usize = 384;

    /// Bytes without a pattern, whose 16-bit numbers are finite in any of the formats.
    fn bytes(count: usize) -> Vec<u8> {
        let mut state = 7_u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x3b
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn file(count: usize) -> Arc<Blob> {
        Arc::new(Blob::made("made", bytes(count)))
    }

    fn all_numbers() -> Vec<Numbers> {
        let count = ROWS * COLUMNS;
        let levels: [f32; 16] = std::array::from_fn(|level| level as f32 / 16.0);
        let four_bits = |scales| Numbers::FourBits(Arc::new(FourBits { levels, block: 64, scales }));
        let nested = NestedScales {
            file: file(count),
            start: 5,
            levels: Box::new(std::array::from_fn(|level| level as f32 / 8.0)),
            block: 16,
            scales: vec![0.25; 8],
            offset: 0.125,
        };
        vec![
            Numbers::Blocks(BlockType::F32),
            Numbers::Blocks(BlockType::F16),
            Numbers::Blocks(BlockType::Bf16),
            Numbers::Blocks(BlockType::Q8_0),
            Numbers::Blocks(BlockType::Q4K),
            Numbers::Scaled(BlockType::F8E4M3, 0.5),
            four_bits(BlockScales::Plain(file(count), 8)),
            four_bits(BlockScales::Nested(nested)),
            Numbers::Int8(Arc::new(Int8 { columns: COLUMNS, scales: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6] })),
        ]
    }

    fn recipe(numbers: &Numbers, is_swapped: bool) -> Recipe {
        let (count, half) = (ROWS * COLUMNS, ROWS * COLUMNS / 2);
        let whole = Segment { file: file(2 * 4 * count), start: 3, skipped: 0, count, numbers: numbers.clone() };
        let segments = if is_swapped {
            vec![Segment { skipped: half, count: half, ..whole.clone() }, Segment { count: half, ..whole }]
        } else {
            vec![whole]
        };
        Recipe { segments, dtype: DType::F32, shape: vec![ROWS, COLUMNS] }
    }

    #[test]
    fn a_stored_matrix_expands_to_the_numbers_of_its_file() {
        for numbers in all_numbers() {
            for is_swapped in [false, true] {
                let recipe = recipe(&numbers, is_swapped);
                let expected: Vec<f32> =
                    recipe.read_to_host().and_then(|all| all.flatten_all()?.to_vec1()).expect("reads");
                let matrix = StoredMatrix::read(&recipe).expect("reads");
                let columns = matrix.columns();
                for row in 0..matrix.rows() {
                    for range in [0..columns, 0..1, 5..6, 31..columns, 64..128, 63..130, 7..7] {
                        let mut out = vec![f32::NAN; range.len()];
                        matrix.expand(row, range.clone(), &mut out).expect("expands");
                        let expected = &expected[row * columns..][range.clone()];
                        let same = out.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{numbers:?}, {is_swapped}, row {row}, {range:?}");
                    }
                }
                check_bf16_rows(&matrix, &format!("{numbers:?}, {is_swapped}"));
                let beyond = columns + 1;
                matrix.expand(0, 0..beyond, &mut vec![0.0; beyond]).expect_err("beyond its width");
                matrix.expand(ROWS, 0..1, &mut [0.0]).expect_err("beyond its end");
            }
        }
    }

    /// Rows in bf16 are the numbers that they expand to; no others are given so. Returns how many there are.
    fn check_bf16_rows(matrix: &StoredMatrix, what: &str) -> usize {
        let given = |row: &usize| {
            let Some(bytes) = matrix.bf16_row(*row) else { return false };
            let mut out = vec![f32::NAN; matrix.columns()];
            matrix.expand(*row, 0..out.len(), &mut out).expect("expands");
            let found = bytes.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32());
            assert!(found.eq(out.iter().copied()), "{what}, row {row}");
            true
        };
        (0..matrix.rows()).filter(given).count()
    }

    #[test]
    fn joined_matrices_stand_one_below_the_other() {
        let kinds = [Numbers::Blocks(BlockType::Q8_0), Numbers::Blocks(BlockType::Bf16)];
        let parts = kinds.each_ref().map(|numbers| StoredMatrix::read(&recipe(numbers, false)).expect("reads"));
        let joined = StoredMatrix::joined(parts.to_vec()).expect("equally wide");
        assert_eq!((joined.rows(), joined.columns()), (2 * ROWS, COLUMNS));
        for row in 0..2 * ROWS {
            let (mut found, mut expected) = ([0.0; COLUMNS], [0.0; COLUMNS]);
            joined.expand(row, 0..COLUMNS, &mut found).expect("expands");
            parts[row / ROWS].expand(row % ROWS, 0..COLUMNS, &mut expected).expect("expands");
            assert_eq!(found, expected, "row {row}");
        }
        assert_eq!(check_bf16_rows(&joined, "joined"), ROWS, "one of the two is in bf16");
        assert!(joined.bf16_row(2 * ROWS).is_none(), "beyond its end");
        let narrow = Recipe { shape: vec![2 * ROWS, COLUMNS / 2], ..recipe(&kinds[0], false) };
        let narrow = StoredMatrix::read(&narrow).expect("reads");
        StoredMatrix::joined(vec![parts[0].clone(), narrow]).expect_err("another width");
    }
}
