//! Matrices that are added to weights, in forms that multiply rows: no sum with the weights, and none as large as they are where
//! that can be avoided.
//!
//! On the CPU every product is the one of `ops/linear.rs`, so a row has the same bits however many rows there are. Its matrices have
//! at least [`ROWS_MULTIPLE`] rows, added zeros among them: narrower ones take other paths through the library.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::engine::adapters::{LowRank, Matrix, WeightChange};
use crate::engine::ops::linear::linear;

/// Ranks and rows of small matrices are padded to a multiple of this. CUDA's products take multiples of eight, too.
const ROWS_MULTIPLE: usize = 8;

/// A matrix `[rows, columns]` that is added to weights, or what it is the product of.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// `factor · up · down`: `down [rank, columns]`, `up [rows, rank]`.
    LowRank { down: Tensor, up: Tensor, factor: f64 },
    /// `factor` times the Kronecker product of two matrices.
    Kronecker { first: Factor, second: Factor, factor: f64 },
    /// The matrix itself.
    Dense(Tensor),
}

/// A matrix with rows of zeros at its end.
#[derive(Debug, Clone)]
pub(super) struct Factor {
    padded: Tensor,
    /// Without the added ones.
    rows: usize,
}

/// `x` times a factor that f32 holds, in the precision of `x`: bf16 would round the factor.
pub(super) fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(x.clone());
    }
    (x.to_dtype(DType::F32)? * factor)?.to_dtype(x.dtype())
}

impl Form {
    /// The form of a change `[rows, columns]`, in f32 on the host. `None` where weights are replaced.
    ///
    /// # Errors
    /// When its numbers are not so many.
    pub(super) fn of(change: WeightChange, [rows, columns]: [usize; 2]) -> Result<Option<Self>> {
        Ok(Some(match change {
            WeightChange::Replacement(_) => return Ok(None),
            WeightChange::LowRank(product) => Self::low_rank(product, [rows, columns])?,
            WeightChange::Hadamard(first, second) if is_cheaper(first.rank * second.rank, [rows, columns]) => {
                Self::low_rank(row_wise_product(&first, &second, columns), [rows, columns])?
            }
            WeightChange::Kronecker { first, second, factor } => {
                Self::Kronecker { first: Factor::new(first)?, second: Factor::new(second)?, factor: factor.into() }
            }
            dense @ (WeightChange::Hadamard(..) | WeightChange::Difference(_)) => {
                let numbers = dense.difference(rows, columns).unwrap_or_default();
                Self::Dense(on_host(numbers, [rows, columns])?)
            }
        }))
    }

    fn low_rank(LowRank { rank, mut down, up, factor }: LowRank, [rows, columns]: [usize; 2]) -> Result<Self> {
        let padded = rank.next_multiple_of(ROWS_MULTIPLE);
        down.resize(padded * columns, 0.0);
        let up = up
            .chunks_exact(rank.max(1))
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, padded - rank)));
        let up = on_host(up.collect(), [rows, padded])?;
        Ok(Self::LowRank { down: on_host(down, [padded, columns])?, up, factor: factor.into() })
    }

    /// With other tensors for all of its own.
    pub(super) fn map(self, of: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::LowRank { down, up, factor } => Self::LowRank { down: of(&down)?, up: of(&up)?, factor },
            Self::Kronecker { first, second, factor } => {
                Self::Kronecker { first: first.map(of)?, second: second.map(of)?, factor }
            }
            Self::Dense(matrix) => Self::Dense(of(&matrix)?),
        })
    }

    /// Bytes of its numbers.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::LowRank { down, up, .. } => bytes(down) + bytes(up),
            Self::Kronecker { first, second, .. } => bytes(&first.padded) + bytes(&second.padded),
            Self::Dense(matrix) => bytes(matrix),
        }
    }

    /// `strength` times the product of `x [n, columns]` with some of the rows: `[n, part]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(super) fn product(&self, x: &Tensor, part: &Range<usize>, strength: f64) -> Result<Tensor> {
        match self {
            Self::LowRank { down, up, factor } => {
                let inner = scaled(&linear(x, down, None)?, factor * strength)?;
                linear(&inner, &up.narrow(0, part.start, part.len())?, None)
            }
            Self::Kronecker { first, second, factor } => {
                let product = scaled(&kronecker_product(x, first, second)?, factor * strength)?;
                product.narrow(1, part.start, part.len())
            }
            Self::Dense(matrix) => scaled(&linear(x, &matrix.narrow(0, part.start, part.len())?, None)?, strength),
        }
    }
}

/// Whether a product of this rank takes fewer operations than the matrix.
fn is_cheaper(rank: usize, [rows, columns]: [usize; 2]) -> bool {
    rank * (rows + columns) < rows * columns
}

/// Two products of low rank, multiplied number by number, as one: its rank is the product of theirs.
fn row_wise_product(first: &LowRank, second: &LowRank, columns: usize) -> LowRank {
    let rank = first.rank * second.rank;
    let width = columns.max(1);
    let mut down = Vec::with_capacity(rank * columns);
    for one in first.down.chunks_exact(width) {
        for other in second.down.chunks_exact(width) {
            down.extend(one.iter().zip(other).map(|(one, other)| one * other));
        }
    }
    let mut up = Vec::with_capacity(first.up.len() * second.rank);
    let rows = first.up.chunks_exact(first.rank.max(1)).zip(second.up.chunks_exact(second.rank.max(1)));
    for (one, other) in rows {
        up.extend(one.iter().flat_map(|one| other.iter().map(move |other| one * other)));
    }
    LowRank { rank, down, up, factor: first.factor * second.factor }
}

/// `x [n, columns]` times the transpose of the Kronecker product of `first` and `second`, which is never in memory: each row of `x`
/// is a matrix `X`, and the result's is `first · X · secondᵀ`.
fn kronecker_product(x: &Tensor, first: &Factor, second: &Factor) -> Result<Tensor> {
    let count = x.dim(0)?;
    let ([first_rows, first_columns], [second_rows, second_columns]) = (first.shape()?, second.shape()?);
    let inner = second.product(&x.contiguous()?.reshape((count * first_columns, second_columns))?)?;
    let inner = inner.reshape((count, first_columns, second_rows))?.transpose(1, 2)?.contiguous()?;
    let outer = first.product(&inner.reshape((count * second_rows, first_columns))?)?;
    let outer = outer.reshape((count, second_rows, first_rows))?.transpose(1, 2)?.contiguous()?;
    outer.reshape((count, first_rows * second_rows))
}

impl Factor {
    fn new(Matrix { shape: [rows, columns], mut numbers }: Matrix) -> Result<Self> {
        let padded = rows.next_multiple_of(ROWS_MULTIPLE);
        numbers.resize(padded * columns, 0.0);
        Ok(Self { padded: on_host(numbers, [padded, columns])?, rows })
    }

    fn map(self, of: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { padded: of(&self.padded)?, rows: self.rows })
    }

    /// Rows and columns, without the added ones.
    fn shape(&self) -> Result<[usize; 2]> {
        Ok([self.rows, self.padded.dim(1)?])
    }

    /// `x [n, columns]` -> `[n, rows]`, contiguous.
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.padded, None)?.narrow(1, 0, self.rows)?.contiguous()
    }
}

/// A matrix in f32 in the host's memory.
pub(super) fn on_host(numbers: Vec<f32>, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
}

/// Bytes of a tensor's numbers.
pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::noise::standard_normal;

    const ROWS: usize = 48;
    const COLUMNS: usize = 40;
    /// Of the input.
    const COUNT: usize = 21;

    fn random(seed: u64, count: usize) -> Vec<f32> {
        let mut numbers = standard_normal(seed, 0, count.next_multiple_of(16));
        numbers.truncate(count);
        numbers
    }

    fn low_rank(seed: u64, rank: usize) -> LowRank {
        let (down, up) = (random(seed, rank * COLUMNS), random(seed + 1, ROWS * rank));
        LowRank { rank, down, up, factor: 0.25 }
    }

    fn kronecker(rows: usize, columns: usize) -> WeightChange {
        let matrix = |seed, shape: [usize; 2]| Matrix { shape, numbers: random(seed, shape[0] * shape[1]) };
        let (first, second) = (matrix(1, [rows, columns]), matrix(2, [ROWS / rows, COLUMNS / columns]));
        WeightChange::Kronecker { first, second, factor: 0.5 }
    }

    fn changes() -> Vec<WeightChange> {
        let mut changes = vec![WeightChange::Difference(random(3, ROWS * COLUMNS))];
        changes.extend([1, 3, 8, 17].map(|rank| WeightChange::LowRank(low_rank(10, rank))));
        // The last is cheaper as a matrix.
        changes.extend([1, 2, 3, 6].map(|rank| WeightChange::Hadamard(low_rank(20, rank), low_rank(30, rank))));
        changes.extend(
            [(1, 1), (4, 2), (2, 8), (12, 5), (48, 40), (48, 1)].map(|(rows, columns)| kronecker(rows, columns)),
        );
        changes
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.contiguous().and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
    }

    #[test]
    fn every_form_multiplies_as_its_matrix_does() {
        let x = random(40, COUNT * COLUMNS);
        let input = on_host(x.clone(), [COUNT, COLUMNS]).expect("a matrix");
        for change in changes() {
            let matrix = change.difference(ROWS, COLUMNS).expect("added");
            let form = Form::of(change.clone(), [ROWS, COLUMNS]).expect("fits").expect("added");
            for part in [0..ROWS, 5..21] {
                let found = numbers(&form.product(&input, &part, -0.5).expect("multiplies"));
                let row_of = |row: &[f32], output: usize| -> f64 {
                    let weights = &matrix[output * COLUMNS..][..COLUMNS];
                    row.iter().zip(weights).map(|(one, other)| -0.5 * f64::from(*one) * f64::from(*other)).sum()
                };
                let rows = x.chunks_exact(COLUMNS);
                let expected = rows.flat_map(|row| part.clone().map(move |output| (row, output)));
                for (found, (row, output)) in found.iter().zip(expected) {
                    let expected = row_of(row, output);
                    assert!((f64::from(*found) - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{change:?}");
                }
                assert_eq!(found.len(), COUNT * part.len());
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let input = on_host(random(50, 300 * COLUMNS), [300, COLUMNS]).expect("a matrix");
        for change in changes() {
            let form = Form::of(change.clone(), [ROWS, COLUMNS]).expect("fits").expect("added");
            let all = numbers(&form.product(&input, &(0..ROWS), 0.7).expect("multiplies"));
            for (first, count) in [(0, 1), (7, 2), (31, 8), (100, 64), (90, 65), (5, 200)] {
                let rows = input.narrow(0, first, count).expect("rows");
                let found = numbers(&form.product(&rows, &(0..ROWS), 0.7).expect("multiplies"));
                assert!(found == all[first * ROWS..][..count * ROWS], "{count} rows from {first}: {change:?}");
            }
        }
    }

    #[test]
    fn what_replaces_weights_has_no_form() {
        assert!(Form::of(WeightChange::Replacement(vec![1.0]), [1, 1]).expect("fits").is_none());
    }

    #[test]
    fn only_a_product_of_small_rank_stays_one() {
        let form = |rank| {
            let change = WeightChange::Hadamard(low_rank(20, rank), low_rank(30, rank));
            Form::of(change, [ROWS, COLUMNS]).expect("fits").expect("added")
        };
        assert!(matches!(form(4), Form::LowRank { .. }));
        assert!(matches!(form(5), Form::Dense(_)));
    }
}
