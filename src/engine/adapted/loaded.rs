//! An adapter whose numbers are in memory, and what each of its changes adds to a layer's outputs.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::form::{Form, bytes, on_host, scaled};
use crate::domain::adapter::AdapterId;

/// Bytes that go to a device at a time, between two steps: few milliseconds of copying.
pub(super) const PIECE_BYTES: usize = 64 << 20;

/// Pieces of a matrix have a multiple of so many rows, but for the last one.
const ROWS_MULTIPLE: usize = 8;

/// What a change is relative to: the layer's product with its input, without the bias.
pub(crate) trait Base {
    /// Some outputs of the rows that are changed, `[n, outputs]`.
    ///
    /// # Errors
    /// When the device fails.
    fn outputs(&self, outputs: &Range<usize>) -> Result<Tensor>;

    /// Some outputs of another input `[n, inputs]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    fn outputs_of(&self, input: &Tensor, outputs: &Range<usize>) -> Result<Tensor>;
}

/// An adapter.
#[derive(Debug)]
pub(crate) struct LoadedAdapter {
    pub(super) id: AdapterId,
    /// Whether it changes a text encoder.
    pub(super) is_of_text: bool,
    /// The inputs that it joins to those of the image's layer, for which an image needs a control image; 0 where it is none of
    /// those.
    pub(super) inputs_joined: usize,
    /// By the names of the modules.
    pub(super) modules: HashMap<String, Vec<RowChange>>,
    /// What takes the place of norms, at any strength, by their names: `[outputs]` each.
    pub(super) norms: HashMap<String, Tensor>,
}

/// A change of some outputs of a module.
#[derive(Debug, Clone)]
pub(crate) struct RowChange {
    /// The outputs.
    pub(super) rows: Range<usize>,
    pub(super) form: Option<Form>,
    pub(super) norm: Option<Norm>,
    /// What is added to the bias, `[1, rows]`.
    pub(super) bias: Option<Tensor>,
}

/// Two matrices whose product, times a factor, is added to weights.
#[derive(Debug)]
pub(crate) struct LowRankMatrices {
    /// `[rank, inputs]`
    pub(super) down: Tensor,
    /// `[outputs, rank]`
    pub(super) up: Tensor,
    pub(super) scale: f32,
}

/// DoRA: what the changed matrix is multiplied by.
#[derive(Debug, Clone)]
pub(super) enum Norm {
    /// For each output, and the same less 1: `[1, rows]` each.
    Rows { scale: Tensor, less_one: Tensor },
    /// For each input, `[1, columns]`.
    Columns(Tensor),
}

impl LoadedAdapter {
    /// Bytes of its numbers.
    pub(super) fn bytes(&self) -> usize {
        let of_modules = self.modules.values().flatten().map(RowChange::bytes).sum::<usize>();
        of_modules + self.norms.values().map(bytes).sum::<usize>()
    }
}

impl Norm {
    /// Of factors for each output.
    pub(super) fn rows(scales: Vec<f32>) -> Result<Self> {
        let less_one = scales.iter().map(|scale| scale - 1.0).collect();
        Ok(Self::Rows { less_one: row(less_one)?, scale: row(scales)? })
    }

    /// Of factors for each input.
    pub(super) fn columns(scales: Vec<f32>) -> Result<Self> {
        row(scales).map(Self::Columns)
    }

    fn map(self, of: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Rows { scale, less_one } => Self::Rows { scale: of(&scale)?, less_one: of(&less_one)? },
            Self::Columns(scale) => Self::Columns(of(&scale)?),
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Rows { scale, less_one } => bytes(scale) + bytes(less_one),
            Self::Columns(scale) => bytes(scale),
        }
    }
}

/// Numbers as one row, in f32 in the host's memory.
pub(super) fn row(numbers: Vec<f32>) -> Result<Tensor> {
    let count = numbers.len();
    on_host(numbers, [1, count])
}

impl RowChange {
    fn map(self, of: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            rows: self.rows,
            form: self.form.map(|form| form.map(of)).transpose()?,
            norm: self.norm.map(|norm| norm.map(of)).transpose()?,
            bias: self.bias.map(|bias| of(&bias)).transpose()?,
        })
    }

    /// Its numbers in another type.
    pub(super) fn in_dtype(self, dtype: DType) -> Result<Self> {
        self.map(&|tensor: &Tensor| tensor.to_dtype(dtype))
    }

    /// Its numbers on a device.
    pub(super) fn on(self, device: &Device) -> Result<Self> {
        self.map(&|tensor: &Tensor| tensor.to_device(device))
    }

    /// The same as changes of about so many bytes, each of some of its outputs, where it is a whole matrix. One that is relative to the
    /// layer's own product stays whole, because each would compute that again; others are small.
    ///
    /// # Errors
    /// When its numbers are on a device that fails.
    pub(super) fn in_pieces(self, bytes_max: usize) -> Result<Vec<Self>> {
        let matrix = match &self.form {
            Some(Form::Dense(matrix)) if !self.is_relative() => Some(matrix.clone()),
            _ => None,
        };
        let Some(matrix) = matrix.filter(|matrix| bytes(matrix) > bytes_max) else { return Ok(vec![self]) };
        let outputs = self.rows.len();
        let pieces = bytes(&matrix).div_ceil(bytes_max.max(1));
        let count = outputs.div_ceil(pieces).next_multiple_of(ROWS_MULTIPLE);
        let piece = |start: usize| -> Result<Self> {
            let count = count.min(outputs - start);
            // Copies: a part of a tensor goes to a device with all of it.
            let of_bias = |bias: &Tensor| bias.narrow(1, start, count)?.force_contiguous();
            Ok(Self {
                rows: self.rows.start + start..self.rows.start + start + count,
                form: Some(Form::Dense(matrix.narrow(0, start, count)?.force_contiguous()?)),
                norm: None,
                bias: self.bias.as_ref().map(of_bias).transpose()?,
            })
        };
        (0..outputs).step_by(count).map(piece).collect()
    }

    /// Bytes of its numbers.
    pub(super) fn bytes(&self) -> usize {
        let form = self.form.as_ref().map_or(0, Form::bytes);
        let norm = self.norm.as_ref().map_or(0, Norm::bytes);
        form + norm + self.bias.as_ref().map_or(0, bytes)
    }

    /// Its matrices of low rank for some of its outputs. `None` where it is of another kind, or changes the bias, too.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn low_rank(&self, part: &Range<usize>, strength: f64) -> Result<Option<LowRankMatrices>> {
        let (Some(Form::LowRank { down, up, factor }), None, None) = (&self.form, &self.norm, &self.bias) else {
            return Ok(None);
        };
        let up = up.narrow(0, part.start, part.len())?;
        Ok(Some(LowRankMatrices { down: down.clone(), up, scale: (factor * strength) as f32 }))
    }

    /// Whether what it adds depends on the layer's own product.
    pub(super) fn is_relative(&self) -> bool {
        self.norm.is_some()
    }

    /// What is added to `part` of its outputs, which are `outputs` of the layer, for the rows of the input `x [n, columns]`:
    /// `[n, part]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(super) fn added(
        &self,
        (part, outputs): (&Range<usize>, &Range<usize>),
        x: &Tensor,
        base: &dyn Base,
        strength: f64,
    ) -> Result<Tensor> {
        let of_part = |row: &Tensor| row.narrow(1, part.start, part.len());
        let added = match (&self.form, &self.norm) {
            (None, _) => None,
            (Some(form), None) => Some(form.product(x, part, strength)?),
            // strength · (scale · (base + product) - base)
            (Some(form), Some(Norm::Rows { scale, less_one })) => {
                let old = base.outputs(outputs)?.broadcast_mul(&of_part(less_one)?)?;
                let new = form.product(x, part, 1.0)?.broadcast_mul(&of_part(scale)?)?;
                Some(scaled(&(old + new)?, strength)?)
            }
            (Some(form), Some(Norm::Columns(scale))) => {
                let input = x.broadcast_mul(scale)?;
                let new = (base.outputs_of(&input, outputs)? + form.product(&input, part, 1.0)?)?;
                Some(scaled(&(new - base.outputs(outputs)?)?, strength)?)
            }
        };
        let bias = self.bias.as_ref().map(|bias| scaled(&of_part(bias)?, strength)).transpose()?;
        match (added, bias) {
            (Some(added), Some(bias)) => added.broadcast_add(&bias),
            (Some(added), None) => Ok(added),
            (None, Some(bias)) => bias.broadcast_as((x.dim(0)?, part.len()))?.contiguous(),
            (None, None) => Tensor::zeros((x.dim(0)?, part.len()), x.dtype(), x.device()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapters::{Change, LowRank, Magnitude, WeightChange};
    use crate::engine::noise::standard_normal;
    use crate::engine::ops::linear::linear;

    const OUTPUTS: usize = 32;
    const INPUTS: usize = 24;
    const COUNT: usize = 10;

    fn random(seed: u64, count: usize) -> Vec<f32> {
        let mut numbers = standard_normal(seed, 0, count.next_multiple_of(16));
        numbers.truncate(count);
        numbers
    }

    /// A layer without a bias.
    struct Layer {
        weight: Tensor,
        product: Tensor,
    }

    impl Base for Layer {
        fn outputs(&self, outputs: &Range<usize>) -> Result<Tensor> {
            self.product.narrow(1, outputs.start, outputs.len())
        }

        fn outputs_of(&self, input: &Tensor, outputs: &Range<usize>) -> Result<Tensor> {
            linear(input, &self.weight, None)?.narrow(1, outputs.start, outputs.len())
        }
    }

    /// The change in rows 4 to 20, with every kind of norm and with a bias.
    fn changes() -> Vec<Change> {
        let rows = 4..20;
        let low_rank = || LowRank { rank: 3, down: random(1, 3 * INPUTS), up: random(2, rows.len() * 3), factor: 0.5 };
        let norms = [None, Some(Magnitude::Rows(random(3, rows.len()))), Some(Magnitude::Columns(random(4, INPUTS)))];
        let biases = [None, Some(random(5, rows.len()))];
        let both = norms.into_iter().flat_map(|norm| biases.clone().map(|bias| (norm.clone(), bias)));
        let change = |(magnitude, bias)| Change {
            rows: rows.clone(),
            columns: INPUTS,
            weight: Some(WeightChange::LowRank(low_rank())),
            magnitude,
            bias,
        };
        let mut changes: Vec<Change> = both.map(change).collect();
        changes.push(Change { weight: None, magnitude: None, ..changes[1].clone() });
        changes
    }

    fn loaded(change: &Change, weight: &[f32]) -> RowChange {
        let Range { start, end } = change.rows;
        let scales = change.scales(&weight[start * INPUTS..end * INPUTS]);
        let norm = change.magnitude.as_ref().zip(scales).map(|(magnitude, scales)| match magnitude {
            Magnitude::Rows(_) => Norm::rows(scales).expect("norms"),
            Magnitude::Columns(_) => Norm::columns(scales).expect("norms"),
        });
        let form = change.weight.clone().map(|weight| Form::of(weight, [end - start, INPUTS]).expect("fits"));
        let bias = change.bias.clone().map(|bias| row(bias).expect("a row"));
        RowChange { rows: start..end, form: form.flatten(), norm, bias }
    }

    #[test]
    fn a_change_adds_to_rows_what_the_changed_weights_would() {
        let (weight, x) = (random(10, OUTPUTS * INPUTS), random(11, COUNT * INPUTS));
        let tensor = |numbers: &[f32], rows| on_host(numbers.to_vec(), [rows, INPUTS]).expect("a matrix");
        let input = tensor(&x, COUNT);
        let product = linear(&input, &tensor(&weight, OUTPUTS), None).expect("multiplies");
        let layer = Layer { weight: tensor(&weight, OUTPUTS), product };
        for change in changes() {
            for strength in [1.0, -0.6] {
                let (mut changed, mut bias) = (weight.clone(), vec![0.0; OUTPUTS]);
                change.apply(&mut changed, strength);
                change.apply_to_bias(&mut bias, strength);
                let bias = Tensor::from_vec(bias, OUTPUTS, &Device::Cpu).expect("a bias");
                let expected = linear(&input, &tensor(&changed, OUTPUTS), Some(&bias)).expect("multiplies");
                // All of its outputs, and some of them.
                for part in [0..16, 3..9] {
                    let outputs = part.start + 4..part.end + 4;
                    let added = loaded(&change, &weight).added((&part, &outputs), &input, &layer, strength.into());
                    let of = |matrix: &Tensor| matrix.narrow(1, outputs.start, outputs.len()).expect("outputs");
                    let found = (of(&layer.product) + added.expect("adds")).expect("one shape");
                    let largest: f32 =
                        (found - of(&expected)).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("one shape");
                    assert!(largest < 1e-4, "{change:?} at {strength}: off by {largest:e}");
                }
            }
        }
    }

    #[test]
    fn a_large_matrix_is_added_in_pieces_of_its_outputs() {
        let (weight, x) = (random(20, OUTPUTS * INPUTS), random(21, COUNT * INPUTS));
        let input = on_host(x, [COUNT, INPUTS]).expect("a matrix");
        let matrix = on_host(weight, [OUTPUTS, INPUTS]).expect("a matrix");
        let layer = Layer { product: linear(&input, &matrix, None).expect("multiplies"), weight: matrix };
        let rows = 4..31;
        let change = Change {
            rows: rows.clone(),
            columns: INPUTS,
            weight: Some(WeightChange::Difference(random(22, rows.len() * INPUTS))),
            magnitude: None,
            bias: Some(random(23, rows.len())),
        };
        let whole = loaded(&change, &[0.0; OUTPUTS * INPUTS]);
        let row_bytes = INPUTS * size_of::<f32>();
        assert_eq!(whole.clone().in_pieces(rows.len() * row_bytes).expect("copies").len(), 1, "it is small enough");
        let pieces = whole.clone().in_pieces(10 * row_bytes).expect("copies");
        assert_eq!(pieces.iter().map(|piece| piece.rows.clone()).collect::<Vec<_>>(), [4..20, 20..31]);
        assert_eq!(pieces.iter().map(RowChange::bytes).sum::<usize>(), whole.bytes());
        let added = |change: &RowChange| {
            let part = 0..change.rows.len();
            change.added((&part, &change.rows), &input, &layer, 0.5).expect("adds")
        };
        let together = Tensor::cat(&pieces.iter().map(added).collect::<Vec<_>>(), 1).expect("side by side");
        let largest: f32 = (together - added(&whole)).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("one shape");
        assert!(largest < 1e-4, "off by {largest:e}");
        let norm = Some(Norm::rows(vec![1.0; rows.len()]).expect("norms"));
        let relative = RowChange { norm, ..whole };
        assert_eq!(relative.in_pieces(row_bytes).expect("copies").len(), 1);
    }
}
