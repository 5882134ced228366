//! A matrix product whose bias is still to be added. On CUDA the next operation adds it at no cost, where a pass of its own
//! would read and write the memory once more.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::is_on_cuda;
use super::low_rank::{LowRankPart, low_rank_add};

/// A matrix product, and the bias that the next operation has to add.
pub(crate) struct MatrixProduct<'a> {
    /// `[rows, columns]`
    pub(super) values: Tensor,
    /// `[columns]`; `None` where there is none, or it has been added.
    pub(super) bias: Option<Cow<'a, Tensor>>,
}

impl From<Tensor> for MatrixProduct<'_> {
    fn from(values: Tensor) -> Self {
        Self { values, bias: None }
    }
}

impl MatrixProduct<'_> {
    /// `width` columns from `start` on.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn narrow(&self, start: usize, width: usize) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, start, width)).transpose()?;
        Ok(Self { values: self.values.narrow(1, start, width)?, bias: bias.map(Cow::Owned) })
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// When it is no matrix.
    pub(crate) fn rows(&self) -> Result<usize> {
        self.values.dim(0)
    }

    /// Some rows.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn of_rows(&self, rows: &Range<usize>) -> Result<Self> {
        Ok(Self { values: self.values.narrow(0, rows.start, rows.len())?, bias: self.bias.clone() })
    }

    /// The values, with the bias added.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn biased(&self) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => self.values.broadcast_add(bias),
            None => Ok(self.values.clone()),
        }
    }

    /// Adds a matrix to the values from a row and a column on, in place. Nothing else may hold the values.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub(crate) fn add(&self, (row, column): (usize, usize), addend: &Tensor) -> Result<()> {
        let (count, width) = addend.dims2()?;
        let rows = self.values.narrow(0, row, count)?;
        rows.slice_set(&(rows.narrow(1, column, width)? + addend)?, 1, column)
    }

    /// Adds changes of low rank, which multiply `x [rows, inputs]`, to the values in place.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn add_low_rank(&self, x: &Tensor, parts: &[LowRankPart]) -> Result<()> {
        low_rank_add(&self.values, x, parts)
    }

    /// The values in some rows and columns without the bias, which is `bias [all columns]`.
    ///
    /// # Errors
    /// When there are fewer, or the device is out of memory.
    pub(crate) fn unbiased(
        &self,
        (rows, columns): (&Range<usize>, &Range<usize>),
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let values = self.values.narrow(0, rows.start, rows.len())?.narrow(1, columns.start, columns.len())?;
        match bias {
            Some(bias) if self.bias.is_none() => values.broadcast_sub(&bias.narrow(0, columns.start, columns.len())?),
            _ => Ok(values),
        }
    }

    /// The bias.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_deref()
    }

    /// Whether the CUDA kernels apply to it.
    pub(super) fn is_on_cuda(&self) -> bool {
        is_on_cuda(&[&self.values]) && self.bias().is_none_or(|bias| is_on_cuda(&[bias]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_matrix_is_added_to_a_part_and_the_rest_stays() {
        let tensor = |numbers: &[f32], shape: [usize; 2]| {
            Tensor::from_slice(numbers, (shape[0], shape[1]), &Device::Cpu).expect("a matrix")
        };
        let product: MatrixProduct = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).into();
        product.add((1, 1), &tensor(&[10.0, 20.0], [1, 2])).expect("fits");
        let values = product.biased().and_then(|values| values.to_vec2::<f32>()).expect("values");
        assert_eq!(values, [[1.0, 2.0, 3.0], [4.0, 15.0, 26.0]]);
        assert!(product.add((1, 2), &tensor(&[1.0, 1.0], [1, 2])).is_err(), "beyond the end");
    }

    #[test]
    fn the_bias_is_taken_away_where_it_was_added() {
        let values = Tensor::new(&[[1.0_f32, 2.0, 3.0]], &Device::Cpu).expect("values");
        let bias = Tensor::new(&[10.0_f32, 20.0, 30.0], &Device::Cpu).expect("a bias");
        let of = |product: &MatrixProduct, bias: Option<&Tensor>| {
            product.unbiased((&(0..1), &(1..3)), bias).and_then(|part| part.to_vec2::<f32>()).expect("a part")
        };
        let added = MatrixProduct::from(values.clone());
        assert_eq!(of(&added, Some(&bias)), [[-18.0, -27.0]]);
        assert_eq!(of(&added, None), [[2.0, 3.0]]);
        let not_yet = MatrixProduct { values, bias: Some(Cow::Borrowed(&bias)) };
        assert_eq!(of(&not_yet, Some(&bias)), [[2.0, 3.0]]);
    }
}
