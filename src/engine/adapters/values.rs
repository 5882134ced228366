//! From a planned change to its numbers: read, found finite, and brought into the model's order of outputs.

use super::change::{Change, LowRank, Magnitude, Matrix, WeightChange, product};
use super::fault::Fault;
use super::planned::{Algebra, Axis, Factors, KroneckerFactor, KroneckerNumbers, Planned, PlannedWeight};
use crate::engine::checkpoint::TensorFile;

/// Reads a change.
///
/// # Errors
/// When the file cannot be read, or a number is not finite.
pub(super) fn read(file: &TensorFile, planned: &Planned) -> Result<Change, Fault> {
    let reader = Reader { file, planned };
    let bias = reader.bias()?;
    let weight = planned.weight.as_ref().map(|weight| reader.weight(weight)).transpose()?;
    let magnitude = match &planned.magnitude {
        None => None,
        Some((tensor, Axis::Rows)) => Some(Magnitude::Rows(reader.rows(tensor)?)),
        Some((tensor, Axis::Columns)) => Some(Magnitude::Columns(numbers(file, tensor)?)),
    };
    Ok(Change { rows: planned.rows.clone(), columns: planned.columns, weight, magnitude, bias })
}

/// A tensor's numbers, all of which are finite.
fn numbers(file: &TensorFile, tensor: &str) -> Result<Vec<f32>, Fault> {
    let numbers = file.weights(tensor).map_err(Fault::Unreadable)?;
    match numbers.iter().find(|number| !number.is_finite()) {
        None => Ok(numbers),
        Some(number) => Err(Fault::NotFinite { tensor: tensor.to_owned(), value: number.to_string() }),
    }
}

/// Exchanges the halves of a matrix's rows.
fn swap_halves(numbers: &mut [f32]) {
    let (first, second) = numbers.split_at_mut(numbers.len() / 2);
    first.swap_with_slice(second);
}

struct Reader<'a> {
    file: &'a TensorFile,
    planned: &'a Planned,
}

impl Reader<'_> {
    /// A tensor whose rows are outputs.
    fn rows(&self, tensor: &str) -> Result<Vec<f32>, Fault> {
        let mut numbers = numbers(self.file, tensor)?;
        if self.planned.are_halves_swapped {
            swap_halves(&mut numbers);
        }
        Ok(numbers)
    }

    fn weight(&self, planned: &PlannedWeight) -> Result<WeightChange, Fault> {
        let factor = planned.factor;
        Ok(match &planned.algebra {
            Algebra::LowRank(factors) => WeightChange::LowRank(self.low_rank(factors, factor)?),
            Algebra::Hadamard([first, second]) => {
                WeightChange::Hadamard(self.low_rank(first, factor)?, self.low_rank(second, 1.0)?)
            }
            Algebra::Kronecker([first, second]) => {
                let (mut first, mut second) = (self.kronecker(first)?, self.kronecker(second)?);
                if self.planned.are_halves_swapped {
                    let outer = if first.shape[0] > 1 { &mut first } else { &mut second };
                    swap_halves(&mut outer.numbers);
                }
                WeightChange::Kronecker { first, second, factor }
            }
            Algebra::Difference(tensor) => WeightChange::Difference(self.rows(tensor)?),
            Algebra::Replacement(tensor) => WeightChange::Replacement(self.rows(tensor)?),
        })
    }

    fn low_rank(&self, factors: &Factors, factor: f32) -> Result<LowRank, Fault> {
        let Factors { down, up, rank } = factors;
        Ok(LowRank { rank: *rank, down: numbers(self.file, down)?, up: self.rows(up)?, factor })
    }

    fn kronecker(&self, factor: &KroneckerFactor) -> Result<Matrix, Fault> {
        let shape = factor.shape;
        let numbers = match &factor.numbers {
            KroneckerNumbers::Matrix(tensor) => numbers(self.file, tensor)?,
            KroneckerNumbers::Product(Factors { down, up, rank }) => {
                let (up, down) = (numbers(self.file, up)?, numbers(self.file, down)?);
                product(&up, &down, [shape[0], *rank, shape[1]])
            }
        };
        Ok(Matrix { shape, numbers })
    }

    fn bias(&self) -> Result<Option<Vec<f32>>, Fault> {
        let mut sum: Option<Vec<f32>> = None;
        for (tensor, factor) in &self.planned.biases {
            let bias = self.rows(tensor)?.into_iter().map(|number| factor * number);
            sum = Some(match sum {
                None => bias.collect(),
                Some(sum) => sum.into_iter().zip(bias).map(|(one, other)| one + other).collect(),
            });
        }
        Ok(sum)
    }
}
