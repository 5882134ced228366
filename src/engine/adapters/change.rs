//! What an adapter changes of a module, in numbers, and the weights that come of it. All matrices are row-major, in the model's
//! order of outputs.

use std::ops::Range;

/// A change of some outputs of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The outputs.
    pub rows: Range<usize>,
    /// How many inputs it has. May be more than the module's: the module's weights for the others are 0. Or fewer: it does not
    /// change the others.
    pub columns: usize,
    /// The change of the matrix, or of a norm.
    pub weight: Option<WeightChange>,
    /// DoRA: the norms that the changed matrix gets.
    pub magnitude: Option<Magnitude>,
    /// What is added to the bias of these outputs.
    pub bias: Option<Vec<f32>>,
}

/// A change of a matrix `[rows, columns]`, or of a norm `[rows]`.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightChange {
    /// LoRA: `factor · up · down` is added.
    LowRank(LowRank),
    /// LoHa: the product, number by number, of two of them is added.
    Hadamard(LowRank, LowRank),
    /// LoKr: `factor` times the Kronecker product of two matrices is added.
    Kronecker {
        /// The matrix whose numbers each become a block.
        first: Matrix,
        /// The matrix that is repeated in each block.
        second: Matrix,
        /// What each number is multiplied by.
        factor: f32,
    },
    /// It is added.
    Difference(Vec<f32>),
    /// It takes the weight's place, at any strength.
    Replacement(Vec<f32>),
}

/// A matrix of low rank: `factor · up · down`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// The rank.
    pub rank: usize,
    /// `[rank, columns]`
    pub down: Vec<f32>,
    /// `[rows, rank]`
    pub up: Vec<f32>,
    /// What each number is multiplied by.
    pub factor: f32,
}

/// A matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Its numbers.
    pub numbers: Vec<f32>,
}

/// The norms that DoRA gives a matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Magnitude {
    /// Of each row.
    Rows(Vec<f32>),
    /// Of each column, over the rows of the change.
    Columns(Vec<f32>),
}

impl Change {
    /// Makes the change to a weight: a matrix `[outputs, columns]`, or a norm, of which it reads and writes its rows.
    ///
    /// # Panics
    /// When the weight has other dimensions.
    pub fn apply(&self, weight: &mut [f32], strength: f32) {
        let Some(change) = &self.weight else { return };
        let part = &mut weight[self.rows.start * self.columns..self.rows.end * self.columns];
        if let WeightChange::Replacement(numbers) = change {
            part.copy_from_slice(numbers);
            return;
        }
        let difference = change.difference(self.rows.len(), self.columns).unwrap_or_default();
        match &self.magnitude {
            None => {
                for (number, difference) in part.iter_mut().zip(difference) {
                    *number += strength * difference;
                }
            }
            Some(magnitude) => {
                let mut changed = difference;
                changed.iter_mut().zip(&*part).for_each(|(changed, number)| *changed += number);
                magnitude.scale(&mut changed, self.columns);
                for (number, changed) in part.iter_mut().zip(changed) {
                    *number += strength * (changed - *number);
                }
            }
        }
    }

    /// Makes the change to a bias `[outputs]`.
    ///
    /// # Panics
    /// When the bias has other dimensions.
    pub fn apply_to_bias(&self, bias: &mut [f32], strength: f32) {
        for (number, difference) in bias[self.rows.clone()].iter_mut().zip(self.bias.iter().flatten()) {
            *number += strength * difference;
        }
    }
}

impl Change {
    /// DoRA: what the rows or columns of the changed matrix are multiplied by, where `weight [rows, columns]` is what the model has in
    /// the rows of the change. `None` where it sets no norms.
    pub(crate) fn scales(&self, weight: &[f32]) -> Option<Vec<f32>> {
        let magnitude = self.magnitude.as_ref()?;
        let mut changed = self.weight.as_ref()?.difference(self.rows.len(), self.columns)?;
        changed.iter_mut().zip(weight).for_each(|(changed, number)| *changed += number);
        Some(magnitude.scales(&changed, self.columns))
    }
}

impl WeightChange {
    /// What is added to the weights, `[rows, columns]`. `None` where they are replaced.
    pub(crate) fn difference(&self, rows: usize, columns: usize) -> Option<Vec<f32>> {
        Some(match self {
            Self::Replacement(_) => return None,
            Self::Difference(numbers) => numbers.clone(),
            Self::LowRank(product) => product.dense(rows, columns),
            Self::Hadamard(first, second) => {
                let mut numbers = first.dense(rows, columns);
                let others = second.dense(rows, columns);
                numbers.iter_mut().zip(others).for_each(|(number, other)| *number *= other);
                numbers
            }
            Self::Kronecker { first, second, factor } => kronecker(first, second, *factor),
        })
    }
}

impl Change {
    /// The change of the first columns, with that of the bias, and the change of the columns from there on. A matrix with fewer columns
    /// has zeros in those. `None` where norms are set: they are over all columns.
    pub(crate) fn split(self, first: usize) -> Option<[Self; 2]> {
        if self.magnitude.is_some() {
            return None;
        }
        let Self { rows, columns, weight, bias, .. } = self;
        let [left, right] = match weight.map(|weight| weight.split([rows.len(), columns], first)) {
            Some(parts) => parts.map(Some),
            None => [None, None],
        };
        let part = |columns, weight, bias| Self { rows: rows.clone(), columns, weight, magnitude: None, bias };
        Some([part(first, left, bias), part(columns - first, right, None)])
    }
}

impl Change {
    /// The same for a matrix with more columns, which does not change the others. `None` where norms are set, or weights are
    /// replaced.
    pub(crate) fn padded(self, columns: usize) -> Option<Self> {
        if self.magnitude.is_some() {
            return None;
        }
        let (shape, bias) = ([self.rows.len(), self.columns], self.bias);
        let weight = match self.weight {
            Some(WeightChange::Replacement(_)) => return None,
            weight => weight.map(|weight| weight.padded(shape, columns)),
        };
        Some(Self { rows: self.rows, columns, weight, magnitude: None, bias })
    }
}

impl WeightChange {
    /// A change of a matrix `[rows, own]` as one of a matrix with more columns.
    fn padded(self, [rows, own]: [usize; 2], columns: usize) -> Self {
        match self {
            Self::LowRank(product) => Self::LowRank(product.padded(own, columns)),
            Self::Hadamard(one, other) => Self::Hadamard(one.padded(own, columns), other.padded(own, columns)),
            other => Self::Difference(columns_padded(&other.difference(rows, own).unwrap_or_default(), own, columns)),
        }
    }

    /// The changes of the first columns of a matrix `[rows, columns]`, and of the others.
    fn split(self, [rows, columns]: [usize; 2], first: usize) -> [Self; 2] {
        match self {
            Self::LowRank(product) => product.split(columns, first).map(Self::LowRank),
            Self::Hadamard(one, other) => {
                let ([one_left, one_right], [other_left, other_right]) =
                    (one.split(columns, first), other.split(columns, first));
                [Self::Hadamard(one_left, other_left), Self::Hadamard(one_right, other_right)]
            }
            Self::Difference(numbers) => columns_split(&numbers, columns, first).map(Self::Difference),
            Self::Replacement(numbers) => columns_split(&numbers, columns, first).map(Self::Replacement),
            kronecker @ Self::Kronecker { .. } => {
                let numbers = kronecker.difference(rows, columns).unwrap_or_default();
                columns_split(&numbers, columns, first).map(Self::Difference)
            }
        }
    }
}

/// A matrix with columns of zeros behind its own.
fn columns_padded(numbers: &[f32], own: usize, columns: usize) -> Vec<f32> {
    let zeros = columns.saturating_sub(own);
    numbers.chunks_exact(own).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, zeros))).collect()
}

/// The first columns of a matrix, and the others.
fn columns_split(numbers: &[f32], columns: usize, first: usize) -> [Vec<f32>; 2] {
    let rows = || numbers.chunks_exact(columns);
    [rows().flat_map(|row| &row[..first]).copied().collect(), rows().flat_map(|row| &row[first..]).copied().collect()]
}

impl LowRank {
    /// The product as one with more columns.
    fn padded(self, own: usize, columns: usize) -> Self {
        Self { down: columns_padded(&self.down, own, columns), ..self }
    }

    /// The products that have the first columns of this one, and the others.
    fn split(self, columns: usize, first: usize) -> [Self; 2] {
        let Self { rank, down, up, factor } = self;
        let [left, right] = columns_split(&down, columns, first);
        [Self { rank, down: left, up: up.clone(), factor }, Self { rank, down: right, up, factor }]
    }

    /// The matrix `[rows, columns]`.
    fn dense(&self, rows: usize, columns: usize) -> Vec<f32> {
        let mut numbers = product(&self.up, &self.down, [rows, self.rank, columns]);
        for number in &mut numbers {
            *number *= self.factor;
        }
        numbers
    }
}

/// The product of `[rows, inner]` and `[inner, columns]`.
pub(super) fn product(first: &[f32], second: &[f32], [rows, inner, columns]: [usize; 3]) -> Vec<f32> {
    let mut numbers = vec![0.0; rows * columns];
    if columns == 0 || inner == 0 {
        return numbers;
    }
    for (row, factors) in numbers.chunks_exact_mut(columns).zip(first.chunks_exact(inner)) {
        for (factor, others) in factors.iter().zip(second.chunks_exact(columns)) {
            row.iter_mut().zip(others).for_each(|(number, other)| *number += factor * other);
        }
    }
    numbers
}

fn kronecker(first: &Matrix, second: &Matrix, factor: f32) -> Vec<f32> {
    let [rows, columns] = second.shape;
    let mut numbers = Vec::with_capacity(first.numbers.len() * second.numbers.len());
    if columns == 0 || first.shape[1] == 0 {
        return numbers;
    }
    for outer in first.numbers.chunks_exact(first.shape[1]) {
        for inner in second.numbers.chunks_exact(columns).take(rows) {
            for scale in outer {
                numbers.extend(inner.iter().map(|number| factor * scale * number));
            }
        }
    }
    numbers
}

impl Magnitude {
    /// Gives a matrix its norms.
    fn scale(&self, matrix: &mut [f32], columns: usize) {
        let scales = self.scales(matrix, columns);
        for (index, row) in matrix.chunks_exact_mut(columns).enumerate() {
            match self {
                Self::Rows(_) => row.iter_mut().for_each(|number| *number *= scales[index]),
                Self::Columns(_) => row.iter_mut().zip(&scales).for_each(|(number, scale)| *number *= scale),
            }
        }
    }

    /// What gives a matrix its norms: a factor for each row, or for each column.
    fn scales(&self, matrix: &[f32], columns: usize) -> Vec<f32> {
        let (norms, squares) = match self {
            Self::Rows(norms) => {
                let of_row = |row: &[f32]| row.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>();
                (norms, matrix.chunks_exact(columns).map(of_row).collect::<Vec<f64>>())
            }
            Self::Columns(norms) => {
                let mut squares = vec![0.0; columns];
                for row in matrix.chunks_exact(columns) {
                    squares.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number).powi(2));
                }
                (norms, squares)
            }
        };
        norms.iter().zip(squares).map(|(norm, squares)| scale(*norm, squares)).collect()
    }
}

/// What gives numbers of a sum of squares a norm. Numbers that are all 0 stay so.
fn scale(norm: f32, squares: f64) -> f32 {
    if squares > 0.0 { (f64::from(norm) / squares.sqrt()) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(weight: WeightChange, magnitude: Option<Magnitude>) -> Change {
        Change { rows: 1..3, columns: 2, weight: Some(weight), magnitude, bias: None }
    }

    fn applied(change: &Change, strength: f32) -> Vec<f32> {
        let mut weight = vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];
        change.apply(&mut weight, strength);
        assert_eq!((&weight[..2], &weight[6..]), (&[10.0, 20.0][..], &[70.0, 80.0][..]), "other rows");
        weight[2..6].to_vec()
    }

    fn low_rank() -> LowRank {
        LowRank { rank: 1, down: vec![1.0, 2.0], up: vec![3.0, 4.0], factor: 0.5 }
    }

    #[test]
    fn each_kind_is_added_to_its_rows() {
        let low = WeightChange::LowRank(low_rank());
        assert_eq!(applied(&change(low, None), -2.0), [27.0, 34.0, 46.0, 52.0]);
        let other = LowRank { rank: 2, down: vec![1.0, 0.0, 0.0, 1.0], up: vec![1.0, 2.0, 3.0, 4.0], factor: 1.0 };
        let hadamard = WeightChange::Hadamard(low_rank(), other);
        assert_eq!(applied(&change(hadamard, None), 1.0), [31.5, 46.0, 56.0, 76.0]);
        let first = Matrix { shape: [2, 1], numbers: vec![1.0, 2.0] };
        let second = Matrix { shape: [1, 2], numbers: vec![3.0, 4.0] };
        let kronecker = WeightChange::Kronecker { first, second, factor: 2.0 };
        assert_eq!(applied(&change(kronecker, None), 1.0), [36.0, 48.0, 62.0, 76.0]);
        let difference = WeightChange::Difference(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!(applied(&change(difference, None), 2.0), [32.0, 44.0, 56.0, 68.0]);
        let replacement = WeightChange::Replacement(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!(applied(&change(replacement, None), 0.1), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_parts_of_a_split_change_are_its_columns() {
        let low = |seed: f32| LowRank { rank: 1, down: vec![seed, 2.0, 3.0, -1.0], up: vec![3.0, 4.0], factor: 0.5 };
        let first = Matrix { shape: [2, 1], numbers: vec![1.0, 2.0] };
        let second = Matrix { shape: [1, 4], numbers: vec![3.0, 4.0, 5.0, 6.0] };
        for weight in [
            WeightChange::LowRank(low(1.0)),
            WeightChange::Hadamard(low(1.0), low(5.0)),
            WeightChange::Kronecker { first, second, factor: 2.0 },
            WeightChange::Difference((0..8_u8).map(f32::from).collect()),
        ] {
            let all = weight.difference(2, 4).expect("added");
            let change =
                Change { rows: 1..3, columns: 4, weight: Some(weight), magnitude: None, bias: Some(vec![1.0; 2]) };
            let [left, right] = change.split(3).expect("no norms");
            assert_eq!((left.columns, right.columns, left.bias.is_some(), right.bias.is_none()), (3, 1, true, true));
            let numbers = |change: Change| change.weight.and_then(|weight| weight.difference(2, change.columns));
            let (left, right) = (numbers(left).expect("added"), numbers(right).expect("added"));
            assert_eq!([&left[..3], &right[..1], &left[3..], &right[1..]].concat(), all);
        }
        let norms = Some(Magnitude::Rows(vec![1.0; 2]));
        let change = Change { rows: 1..3, columns: 4, weight: None, magnitude: norms, bias: None };
        assert_eq!((change.clone().split(3), change.padded(6)), (None, None));
    }

    #[test]
    fn a_padded_change_leaves_the_other_columns() {
        let first = Matrix { shape: [2, 1], numbers: vec![1.0, 2.0] };
        let second = Matrix { shape: [1, 2], numbers: vec![3.0, 4.0] };
        for weight in [
            WeightChange::LowRank(low_rank()),
            WeightChange::Hadamard(low_rank(), low_rank()),
            WeightChange::Kronecker { first, second, factor: 2.0 },
            WeightChange::Difference(vec![1.0, 2.0, 3.0, 4.0]),
        ] {
            let own = weight.difference(2, 2).expect("added");
            let padded = change(weight, None).padded(3).expect("no norms");
            let all = padded.weight.and_then(|weight| weight.difference(2, 3)).expect("added");
            assert_eq!((padded.columns, all), (3, vec![own[0], own[1], 0.0, own[2], own[3], 0.0]));
        }
        assert_eq!(change(WeightChange::Replacement(vec![1.0; 4]), None).padded(3), None);
    }

    #[test]
    fn dora_sets_norms_of_rows_or_columns() {
        let to = |numbers: [f32; 4]| {
            let old = [30.0, 40.0, 50.0, 60.0];
            WeightChange::Difference(numbers.iter().zip(old).map(|(new, old)| new - old).collect())
        };
        let rows = change(to([3.0, 4.0, 0.0, 0.0]), Some(Magnitude::Rows(vec![10.0, 7.0])));
        assert_eq!(applied(&rows, 1.0), [6.0, 8.0, 0.0, 0.0]);
        assert_eq!(applied(&rows, 0.5), [18.0, 24.0, 25.0, 30.0]);
        let columns = change(to([3.0, 0.0, 4.0, 2.0]), Some(Magnitude::Columns(vec![10.0, 1.0])));
        assert_eq!(applied(&columns, 1.0), [6.0, 0.0, 8.0, 1.0]);
    }
}
