//! How the weights of linear layers are kept on a device: one file per kind. Each owns its bytes, its construction from
//! the checkpoint's weights, and its matrix product.
//!
//! Must not know which layer it serves.

mod as_stored;
mod bf16;
mod dense;
mod e4m3;
mod input;
mod precision;

use candle_core::{Device, Result, Tensor};

use crate::domain::precision::Precision;
use crate::engine::checkpoint::{E4m3Matrix, Matrix, Tensors};
use crate::engine::ops::matrix_product::MatrixProduct;

pub use as_stored::AsStoredError;
pub(crate) use as_stored::{AsStored, check_kept, is_e4m3_kept, words_for_e4m3};
use bf16::Bf16;
pub(crate) use dense::Dense;
use e4m3::E4m3;
pub(crate) use input::Input;
pub use precision::PrecisionError;
pub(crate) use precision::{
    LinearCount, bytes_saved, check_device, check_gpu, check_streamed, check_widths, dtype_of_linears,
};

/// A weight matrix `[outputs, inputs]`.
pub(crate) enum Stored {
    Dense(Dense),
    E4m3(E4m3),
    AsStored(AsStored),
    Bf16(Bf16),
}

impl Stored {
    /// Keeps a matrix on a device as it was given.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn of(matrix: Matrix, device: &Device) -> Result<Self> {
        match matrix {
            Matrix::Full(weight) => Ok(Self::Dense(Dense::new(weight))),
            Matrix::Stored(matrix) => AsStored::on(device, matrix).map(Self::AsStored),
        }
    }

    /// Keeps a matrix on a device in a precision; as it was given, where that quantizes.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn in_precision(precision: Precision, matrix: Matrix, device: &Device) -> Result<Self> {
        match precision {
            Precision::Bf16 => Bf16::of(matrix).map(Self::Bf16),
            Precision::Full | Precision::Fp8 => Self::of(matrix, device),
        }
    }

    /// Loads `weight`. Where it is quantized, the copy in full precision is dropped afterwards, so that at most one layer is in
    /// memory twice.
    ///
    /// # Errors
    /// When it cannot be read, or the device is out of memory.
    pub(crate) fn load(shape: [usize; 2], precision: Precision, tensors: &Tensors) -> Result<Self> {
        match precision {
            Precision::Full | Precision::Bf16 => {
                Self::in_precision(precision, tensors.matrix(shape, "weight")?, tensors.device())
            }
            Precision::Fp8 => match tensors.e4m3(shape, "weight")? {
                Some(E4m3Matrix { codes, scales }) => E4m3::kept(codes, &scales).map(Self::E4m3),
                None => E4m3::quantize(&tensors.get((shape[0], shape[1]), "weight")?).map(Self::E4m3),
            },
        }
    }

    /// `input [rows, inputs]` times the transpose of the matrix, plus `bias [outputs]`, which the next operation may add.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device fails.
    pub(crate) fn product<'a>(&self, input: &Input, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
        match self {
            Self::Dense(dense) => dense.product(input.computed()?.as_ref(), bias),
            Self::E4m3(quantized) => quantized.product(&input.quantized()?, bias),
            Self::AsStored(stored) => stored.product(input.computed()?.as_ref(), bias),
            Self::Bf16(matrix) => matrix.product(input.computed()?.as_ref(), bias),
        }
    }

    /// [`Self::product`], with the same bits, where the input's rows were computed for something else, too.
    ///
    /// # Errors
    /// As [`Self::product`].
    pub(crate) fn product_of_computed<'a>(
        &self,
        input: &Input,
        rows: &Tensor,
        bias: Option<&'a Tensor>,
    ) -> Result<MatrixProduct<'a>> {
        match self {
            // Quantized in one pass with the operation, which may round otherwise.
            Self::E4m3(_) => self.product(input, bias),
            Self::Dense(_) | Self::AsStored(_) | Self::Bf16(_) => self.product(&Input::Rows(rows), bias),
        }
    }

    /// The matrix in full precision, if it is kept so.
    pub(crate) fn dense(&self) -> Option<&Dense> {
        match self {
            Self::Dense(dense) => Some(dense),
            Self::E4m3(_) | Self::AsStored(_) | Self::Bf16(_) => None,
        }
    }
}
