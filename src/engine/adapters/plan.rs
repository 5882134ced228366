//! From the tensors of a module's name to the planned change: types and shapes are compared with the module's. Numbers are not
//! read, but for alphas.

use super::fault::Fault;
use super::groups::Group;
use super::keys::Role;
use super::planned::{Algebra, Axis, Factors, KroneckerFactor, KroneckerNumbers, Planned, PlannedWeight};
use super::scaling::{Settings, alpha};
use crate::engine::checkpoint::{AdaptedModule, IMAGE_INPUT, TensorFile};

/// Largest rank. Trainers go up to 512; files with split queries, keys and values have four times that.
const RANK_MAX: usize = 4096;

/// Maximum numbers of a shape.
const DIMENSIONS_MAX: usize = 8;

/// Plans the change of a group. `None` where the group has nothing but an alpha.
///
/// # Errors
/// When its tensors are not those of a change of this module.
pub(super) fn plan(file: &TensorFile, group: &Group, settings: &Settings) -> Result<Option<Planned>, Fault> {
    let tensors = Tensors { file, group, settings };
    if group.tensors.contains_key(&Role::Middle) {
        return Err(tensors.impossible("it has a middle factor, as changes of convolutions do; this model has none"));
    }
    let (weight, columns) = tensors.weight()?;
    let magnitude = tensors.magnitude(columns)?;
    if magnitude.is_some() && weight.is_none() {
        let (has, lacks) = ("a magnitude (DoRA)", "change that it is for");
        return Err(Fault::Missing { path: group.path.to_owned(), has, lacks });
    }
    let biases = tensors.biases(weight.as_ref())?;
    tensors.check_shape(columns)?;
    if weight.is_none() && biases.is_empty() {
        return Ok(None);
    }
    Ok(Some(Planned {
        path: group.path.to_owned(),
        module: group.found.place.module,
        rows: group.found.place.rows.clone(),
        columns,
        are_halves_swapped: group.found.place.are_halves_swapped,
        weight,
        magnitude,
        biases,
    }))
}

/// The tensors of a group.
struct Tensors<'a> {
    file: &'a TensorFile,
    group: &'a Group<'a>,
    settings: &'a Settings,
}

impl Tensors<'_> {
    fn get(&self, role: Role) -> Option<&str> {
        self.group.tensors.get(&role).copied()
    }

    fn module(&self) -> &AdaptedModule {
        self.group.found.module
    }

    fn rows(&self) -> usize {
        self.group.found.place.rows.len()
    }

    fn impossible(&self, reason: impl Into<String>) -> Fault {
        Fault::Impossible { path: self.group.path.to_owned(), reason: reason.into() }
    }

    fn wrong_shape(&self, tensor: &str, expected: String) -> Fault {
        let (found, module) = (self.file.shape(tensor).to_vec(), self.module().name.clone());
        Fault::Shape { tensor: tensor.to_owned(), found, module, expected }
    }

    /// The change of the matrix or norm, and how many inputs it has.
    fn weight(&self) -> Result<(Option<PlannedWeight>, usize), Fault> {
        let factors = self.factors(Role::Down, Role::Up, Some(self.rows()))?;
        let first = self.factors(Role::HadamardDown1, Role::HadamardUp1, Some(self.rows()))?;
        let second = self.factors(Role::HadamardDown2, Role::HadamardUp2, Some(self.rows()))?;
        let hadamard = self.both("LoHa", first, second)?;
        let first = self.kronecker([Role::Kronecker1, Role::KroneckerDown1, Role::KroneckerUp1])?;
        let second = self.kronecker([Role::Kronecker2, Role::KroneckerDown2, Role::KroneckerUp2])?;
        let kronecker = self.both("LoKr", first, second)?;
        let whole = |role| self.get(role).map(ToOwned::to_owned);
        let replacement = whole(Role::Replacement).or(whole(Role::Own));
        let mut found = [
            factors.map(Algebra::LowRank),
            hadamard.map(Algebra::Hadamard),
            kronecker.map(Algebra::Kronecker),
            whole(Role::Difference).map(Algebra::Difference),
            replacement.map(Algebra::Replacement),
        ]
        .into_iter()
        .flatten();
        let Some(algebra) = found.next() else { return Ok((None, self.module().inputs.unwrap_or(1))) };
        if found.next().is_some() {
            return Err(self.impossible("it has changes of more than one kind"));
        }
        let columns = self.check(&algebra)?;
        let factor = self.factor(&algebra)?;
        Ok((Some(PlannedWeight { algebra, factor }), columns))
    }

    fn both<T>(&self, what: &str, first: Option<T>, second: Option<T>) -> Result<Option<[T; 2]>, Fault> {
        match (first, second) {
            (Some(first), Some(second)) => Ok(Some([first, second])),
            (None, None) => Ok(None),
            _ => Err(self.impossible(format!("{what} needs two matrices, w1 and w2, and one is missing"))),
        }
    }

    /// The shape of a matrix of weights. `None` in `expected` stands for any size.
    fn matrix(&self, tensor: &str, expected: [Option<usize>; 2]) -> Result<[usize; 2], Fault> {
        self.check_dtype(tensor)?;
        match *self.file.shape(tensor) {
            [rows, columns]
                if expected[0].is_none_or(|size| size == rows) && expected[1].is_none_or(|size| size == columns) =>
            {
                Ok([rows, columns])
            }
            _ => {
                let size = |size: Option<usize>| size.map_or_else(|| "rank".to_owned(), |size| size.to_string());
                Err(self.wrong_shape(
                    tensor,
                    match expected {
                        [None, None] => "a matrix".to_owned(),
                        [rows, columns] => format!("[{}, {}]", size(rows), size(columns)),
                    },
                ))
            }
        }
    }

    fn check_dtype(&self, tensor: &str) -> Result<(), Fault> {
        if self.file.has_weights(tensor) {
            return Ok(());
        }
        Err(Fault::Dtype { tensor: tensor.to_owned(), found: self.file.dtype(tensor) })
    }

    /// Two factors. Where their rows are known they are those of the module, whose columns are compared, too.
    fn factors(&self, down: Role, up: Role, rows: Option<usize>) -> Result<Option<Factors>, Fault> {
        let (down, up) = match (self.get(down), self.get(up)) {
            (Some(down), Some(up)) => (down, up),
            (None, None) => return Ok(None),
            (down, _) => {
                let (has, lacks) =
                    if down.is_some() { ("a down factor", "up factor") } else { ("an up factor", "down factor") };
                return Err(Fault::Missing { path: self.group.path.to_owned(), has, lacks });
            }
        };
        if rows.is_some() && self.module().inputs.is_none() {
            return Err(self.impossible("a norm is no matrix, and has no factors"));
        }
        let is_taken = matches!(self.file.shape(down), [_, columns] if self.takes(*columns));
        let columns = self.module().inputs.filter(|_| rows.is_some() && !is_taken);
        let [rank, _] = self.matrix(down, [None, columns])?;
        let [_, up_rank] = self.matrix(up, [rows, None])?;
        if rank != up_rank {
            let (first, second) = (down.to_owned(), up.to_owned());
            return Err(Fault::Ranks { first, second, ranks: [rank, up_rank] });
        }
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(Fault::Rank { tensor: down.to_owned(), rank, max: RANK_MAX });
        }
        Ok(Some(Factors { down: down.to_owned(), up: up.to_owned(), rank }))
    }

    /// Whether a change of the module may have so many inputs. Control adapters make the input of the image's layer twice as wide.
    /// Where the model has joined inputs itself, adapters of other models lack them.
    fn takes(&self, columns: usize) -> bool {
        let AdaptedModule { name, inputs, joined, .. } = self.module();
        let Some(inputs) = *inputs else { return false };
        let others = if *joined == 0 { 2 * inputs } else { inputs - joined };
        columns == inputs || name == IMAGE_INPUT && columns == others
    }

    fn kronecker(&self, [matrix, down, up]: [Role; 3]) -> Result<Option<KroneckerFactor>, Fault> {
        let factors = self.factors(down, up, None)?;
        match (self.get(matrix), factors) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(self.impossible("it has a LoKr factor both as a matrix and as a product")),
            (Some(tensor), None) => {
                let shape = self.matrix(tensor, [None, None])?;
                Ok(Some(KroneckerFactor { numbers: KroneckerNumbers::Matrix(tensor.to_owned()), shape }))
            }
            (None, Some(factors)) => {
                let shape = [self.file.shape(&factors.up)[0], self.file.shape(&factors.down)[1]];
                Ok(Some(KroneckerFactor { numbers: KroneckerNumbers::Product(factors), shape }))
            }
        }
    }

    /// Compares a change with the module. Returns how many inputs it has.
    fn check(&self, algebra: &Algebra) -> Result<usize, Fault> {
        let columns_of = |factors: &Factors| self.file.shape(&factors.down)[1];
        match algebra {
            Algebra::LowRank(factors) => Ok(columns_of(factors)),
            Algebra::Hadamard([first, second]) => {
                let columns = columns_of(first);
                if columns_of(second) == columns {
                    return Ok(columns);
                }
                Err(self.wrong_shape(&second.down, format!("[{}, {columns}]", second.rank)))
            }
            Algebra::Kronecker([first, second]) => self.check_kronecker(first.shape, second.shape),
            Algebra::Difference(tensor) | Algebra::Replacement(tensor) => {
                let Some(inputs) = self.module().inputs else {
                    self.check_vector(tensor)?;
                    return Ok(1);
                };
                let is_taken = matches!(self.file.shape(tensor), [_, columns] if self.takes(*columns));
                let expected = [Some(self.rows()), (!is_taken).then_some(inputs)];
                self.matrix(tensor, expected).map(|[_, columns]| columns)
            }
        }
    }

    fn check_kronecker(&self, first: [usize; 2], second: [usize; 2]) -> Result<usize, Fault> {
        let size = |axis: usize| first[axis].checked_mul(second[axis]);
        let (rows, columns) = (self.rows(), size(1).filter(|&columns| self.takes(columns)));
        let Some(columns) = columns.filter(|_| size(0) == Some(rows)) else {
            let (name, inputs) = (&self.module().name, self.module().inputs.unwrap_or(1));
            return Err(self.impossible(format!(
                "factors of shapes {first:?} and {second:?} make no matrix [{rows}, {inputs}], which `{name}` takes"
            )));
        };
        // The halves of a product's rows are those of its first factor, if these are even or one.
        if self.group.found.place.are_halves_swapped && first[0] > 1 && !first[0].is_multiple_of(2) {
            return Err(
                self.impossible("the halves of its outputs cannot be swapped: its first factor has an odd number")
            );
        }
        Ok(columns)
    }

    fn check_vector(&self, tensor: &str) -> Result<(), Fault> {
        self.check_dtype(tensor)?;
        if *self.file.shape(tensor) == [self.rows()] {
            return Ok(());
        }
        Err(self.wrong_shape(tensor, format!("[{}]", self.rows())))
    }

    fn factor(&self, algebra: &Algebra) -> Result<f32, Fault> {
        let rank = match algebra {
            Algebra::LowRank(factors) | Algebra::Hadamard([factors, _]) => factors.rank,
            Algebra::Kronecker(factors) => {
                let rank = factors.iter().rev().find_map(|factor| match &factor.numbers {
                    KroneckerNumbers::Matrix(_) => None,
                    KroneckerNumbers::Product(factors) => Some(factors.rank),
                });
                match rank {
                    Some(rank) => rank,
                    // Files have any alpha here, up to 1e10, and their trainer ignores it.
                    None => return Ok(1.0),
                }
            }
            Algebra::Difference(_) | Algebra::Replacement(_) => return Ok(1.0),
        };
        let factor = match self.get(Role::Alpha) {
            Some(tensor) => alpha(self.file, tensor)? / rank as f64,
            None => match algebra {
                Algebra::LowRank(_) => {
                    let found = &self.group.found;
                    self.settings.factor(found.module.component, found.rest, rank).unwrap_or(1.0)
                }
                _ => 1.0,
            },
        };
        let factor = factor as f32;
        if factor.is_finite() { Ok(factor) } else { Err(self.impossible("its alpha is too large")) }
    }

    fn magnitude(&self, columns: usize) -> Result<Option<(String, Axis)>, Fault> {
        let Some(tensor) = self.get(Role::Magnitude) else { return Ok(None) };
        self.check_dtype(tensor)?;
        let (shape, rows) = (self.file.shape(tensor), self.rows());
        let axis = if shape == [rows, 1] || shape == [rows] {
            Axis::Rows
        } else if shape == [1, columns] {
            Axis::Columns
        } else {
            return Err(self.wrong_shape(tensor, format!("[{rows}, 1] or [1, {columns}]")));
        };
        Ok(Some((tensor.to_owned(), axis)))
    }

    /// The bias of the second factor is scaled as the product is.
    fn biases(&self, weight: Option<&PlannedWeight>) -> Result<Vec<(String, f32)>, Fault> {
        let of_factor = weight.map_or(1.0, |weight| weight.factor);
        let mut biases = Vec::new();
        for (role, factor) in [(Role::UpBias, of_factor), (Role::BiasDifference, 1.0)] {
            let Some(tensor) = self.get(role) else { continue };
            if !self.module().has_bias {
                return Err(self.impossible("it changes a bias, which this module lacks"));
            }
            self.check_vector(tensor)?;
            biases.push((tensor.to_owned(), factor));
        }
        Ok(biases)
    }

    /// Compares the shape that the file says the weight has.
    fn check_shape(&self, columns: usize) -> Result<(), Fault> {
        let Some(tensor) = self.get(Role::Shape) else { return Ok(()) };
        let numbers = self.file.few_numbers(tensor, DIMENSIONS_MAX).map_err(Fault::Unreadable)?;
        if numbers == Some(vec![self.rows() as f64, columns as f64]) {
            return Ok(());
        }
        Err(self.impossible(format!("its change has shape [{}, {columns}], it says another", self.rows())))
    }
}
