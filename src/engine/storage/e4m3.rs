//! Weights in e4m3 (fp8), with a scale for each output: half of bf16's bytes, and GEMMs at twice the rate. Lossy.
//!
//! What a layer reads is quantized as well, row by row (`ops/quantize.rs`). The weights of a file that has them in e4m3, with
//! one scale for each matrix, are kept as they are: nothing is lost of them.

use candle_core::{Result, Tensor};

use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::ops::quantize::{self, Quantized};

/// A weight matrix `[outputs, inputs]` in e4m3.
pub(crate) struct E4m3(Quantized);

impl E4m3 {
    /// Quantizes a matrix: f32 on the CPU, bf16 on CUDA.
    pub(super) fn quantize(weight: &Tensor) -> Result<Self> {
        Quantized::of(weight).map(Self)
    }

    /// Keeps the codes of a file, `[outputs, inputs]`, where they are, with a scale for each output.
    pub(super) fn kept(codes: Tensor, scales: &[f32]) -> Result<Self> {
        Quantized::from_codes(codes, scales).map(Self)
    }

    /// Its size in memory: codes and scales.
    pub(super) fn bytes([outputs, inputs]: [usize; 2]) -> usize {
        Quantized::bytes(outputs, inputs)
    }

    /// `x [rows, inputs]` -> `[rows, outputs]`.
    pub(super) fn product<'a>(&self, x: &Quantized, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
        quantize::product(x, &self.0, bias)
    }
}
