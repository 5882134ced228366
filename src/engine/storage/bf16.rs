//! Weights that are multiplied in bf16 on the CPU, with sums in f32: half of the bytes of f32, and lossy. What a layer reads is rounded
//! as well.

use std::ops::Range;

use candle_core::{DType, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::engine::checkpoint::{Matrix, StoredMatrix};
use crate::engine::ops::expanded_linear::rounded_linear;
use crate::engine::ops::gemm::expanded::ExpandRows;
use crate::engine::ops::gemm::rounded::round_to_bytes;
use crate::engine::ops::matrix_product::MatrixProduct;

/// Numbers that a thread rounds at a time.
const ROUNDED_AT_ONCE: usize = 64 << 10;

/// A weight matrix `[outputs, inputs]`.
pub(crate) enum Bf16 {
    /// As its file stores it; rounded when it is multiplied, where that is not bf16.
    AsStored(StoredMatrix),
    /// Rounded when it was loaded.
    Rounded(Numbers),
}

/// A matrix in bf16.
pub(crate) struct Numbers {
    /// `[rows, columns]`, contiguous, little-endian.
    bytes: Vec<u8>,
    columns: usize,
}

impl Bf16 {
    /// Rounds a matrix in the host's memory, or keeps it as its file stores it.
    pub(super) fn of(matrix: Matrix) -> Result<Self> {
        match matrix {
            Matrix::Full(weight) => Numbers::of(&weight).map(Self::Rounded),
            Matrix::Stored(stored) => Ok(Self::AsStored(stored)),
        }
    }

    /// Its size in memory where it was rounded.
    pub(super) fn bytes([outputs, inputs]: [usize; 2]) -> usize {
        outputs * inputs * size_of::<bf16>()
    }

    /// `x [rows, inputs]` -> `[rows, outputs]`, with the bias.
    pub(super) fn product<'a>(&self, x: &Tensor, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
        let rows: &dyn ExpandRows = match self {
            Self::AsStored(matrix) => matrix,
            Self::Rounded(numbers) => numbers,
        };
        rounded_linear(x, rows, bias).map(MatrixProduct::from)
    }
}

impl Numbers {
    fn of(weight: &Tensor) -> Result<Self> {
        let weight = weight.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("a weight is rounded to bf16 in the host's memory");
        };
        let numbers = &storage.as_slice::<f32>()?[start..end];
        let mut bytes = vec![0; Bf16::bytes([numbers.len(), 1])];
        let tasks = bytes.par_chunks_mut(Bf16::bytes([ROUNDED_AT_ONCE, 1])).zip(numbers.par_chunks(ROUNDED_AT_ONCE));
        tasks.for_each(|(bytes, numbers)| round_to_bytes(numbers, bytes));
        Ok(Self { bytes, columns: layout.dims()[1] })
    }

    fn row(&self, row: usize) -> &[u8] {
        let bytes = self.columns * size_of::<bf16>();
        &self.bytes[row * bytes..][..bytes]
    }
}

impl ExpandRows for Numbers {
    fn rows(&self) -> usize {
        self.bytes.len() / (self.columns * size_of::<bf16>()).max(1)
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (numbers, _) = self.row(row).as_chunks();
        for (out, number) in out.iter_mut().zip(&numbers[columns]) {
            *out = bf16::from_le_bytes(*number).to_f32();
        }
        Ok(())
    }

    fn bf16_row(&self, row: usize) -> Option<&[u8]> {
        Some(self.row(row))
    }
}
