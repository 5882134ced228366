//! Matrices in eight bits, for products at twice the rate: lossy.
//!
//! Each row has a scale of its own, so that a row does not depend on its company. The scale is the row's largest magnitude
//! divided by 448, in f32, and the codes are the row's values times the scale's inverse (rounded to f32), rounded to the
//! nearest e4m3, of two as near to the even one. A row without a value as large as 448 × 2⁻¹²⁶ has the scale 1, and so
//! becomes zeros. A finite row stays finite. A row with a value that is not finite has no number for a scale, so that every
//! product of it is no number: what is wrong with an image is still found in it.
//!
//! On CUDA in bf16 a kernel does this (`kernels/quantize.cu`) and the tensor cores multiply the codes. On the CPU in f32
//! the same codes are multiplied as f32: no faster, but the loss can be had anywhere.

mod e4m3;

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::activation::{beside_gelu_tanh, gelu_tanh};
use super::gemm::{MatrixRef, Threads, multiply};
use super::linear::Product;
use super::modulation::modulated_layer_norm;
use super::vector::vectorized;
use super::{Rows, Segments, is_on_cpu};

/// A row needs a value as large as this, 448 × 2⁻¹²⁶, for its scale to have an inverse that is surely a number.
const NOTICEABLE: f32 = e4m3::LARGEST * f32::MIN_POSITIVE;

/// A matrix of e4m3 whose element (i, j) is `codes[i, j] × scales[i]`.
#[derive(Debug, Clone)]
pub(crate) struct Quantized {
    /// `[rows, width]`, u8, contiguous.
    codes: Tensor,
    /// `[rows]`, f32.
    scales: Tensor,
}

impl Quantized {
    /// Rounds each row of `x [rows, width]`: f32 on the CPU, bf16 on CUDA, where widths are multiples of 16.
    ///
    /// # Errors
    /// When the device cannot, or is out of memory.
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        if is_on_cpu(x) {
            return Self::of_cpu(x);
        }
        #[cfg(feature = "cuda")]
        if super::is_on_cuda(&[x]) {
            let [codes, scales] = super::cuda::quantize::rows(x)?;
            return Ok(Self { codes, scales });
        }
        bail!("rows of {:?} cannot be rounded to e4m3 on {:?}", x.dtype(), x.device().location())
    }

    /// What [`modulated_layer_norm`] gives, rounded; on CUDA without a pass over the memory between the two.
    ///
    /// # Errors
    /// As [`Self::of`], or when shapes do not fit.
    pub(crate) fn of_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, segments: &Segments) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if super::is_on_cuda(&[x, shift, scale])
            && super::is_launchable(segments)
            && super::cuda::quantize::is_narrow(x.dim(1)?)
        {
            let epsilon = super::modulation::EPSILON as f32;
            let [codes, scales] = super::cuda::quantize::modulated_layer_norm(x, [shift, scale], segments, epsilon)?;
            return Ok(Self { codes, scales });
        }
        Self::of(&modulated_layer_norm(x, shift, scale, segments)?)
    }

    /// What [`gelu_tanh`] or, with a left side, [`beside_gelu_tanh`] gives, rounded; on CUDA without a pass over the memory
    /// between the two.
    ///
    /// # Errors
    /// As [`Self::of`], or when shapes do not fit.
    pub(crate) fn of_gelu_tanh(left: Option<&Tensor>, right: &Product) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if right.is_on_cuda() && left.is_none_or(|left| super::is_on_cuda(&[left])) {
            let [codes, scales] = super::cuda::quantize::beside_gelu_tanh(left, &right.values, right.bias())?;
            return Ok(Self { codes, scales });
        }
        match left {
            Some(left) => Self::of(&beside_gelu_tanh(left, right)?),
            None => Self::of(&gelu_tanh(right)?),
        }
    }

    fn of_cpu(x: &Tensor) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("expected a tensor on the CPU") };
        let rows = Rows::new(storage, layout)?;
        let mut codes = vec![0_u8; rows.count * rows.width];
        let mut scales = vec![0.0_f32; rows.count];
        codes.par_chunks_mut(rows.width.max(1)).zip(&mut scales).enumerate().for_each(|(index, (codes, scale))| {
            vectorized(|| {
                let row = rows.row(index);
                *scale = scale_of(row);
                let inverse = 1.0 / *scale;
                for (code, value) in codes.iter_mut().zip(row) {
                    *code = e4m3::code_of(value * inverse);
                }
            });
        });
        Ok(Self {
            codes: Tensor::from_vec(codes, (rows.count, rows.width), x.device())?,
            scales: Tensor::from_vec(scales, rows.count, x.device())?,
        })
    }

    /// The codes' numbers, before scaling, on the CPU.
    fn unscaled(&self) -> Result<Vec<f32>> {
        let codes = self.codes.flatten_all()?.to_vec1::<u8>()?;
        Ok(codes.into_par_iter().map(|code| e4m3::VALUES[usize::from(code)]).collect())
    }

    /// What it takes of memory, in bytes.
    pub(crate) fn bytes(rows: usize, width: usize) -> usize {
        rows * width + rows * size_of::<f32>()
    }
}

/// Of a row.
#[inline(always)]
fn scale_of(row: &[f32]) -> f32 {
    // Magnitudes as bits have the order of the numbers, and above them all stand infinity and what is no number.
    let largest = row.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    match largest {
        _ if !largest.is_finite() => f32::NAN,
        _ if largest < NOTICEABLE => 1.0,
        _ => largest / e4m3::LARGEST,
    }
}

/// Values of a row that become 16 bytes of codes.
pub(super) const CODES: usize = 16;

/// Most values of a row that a kernel holds.
pub(super) const WIDTH_MAX: usize = 16_384;

/// Whether the kernels and the library take rows of so many values.
pub(crate) fn is_possible(width: usize) -> bool {
    width > 0 && width.is_multiple_of(CODES) && width <= WIDTH_MAX
}

/// Multiplies a little on a device whose numbers are `dtype`.
///
/// # Errors
/// When the device cannot do it.
pub(crate) fn try_on(device: &Device, dtype: DType) -> Result<()> {
    let ones = |rows: usize| Tensor::ones((rows, 64), dtype, device);
    let bias = Tensor::zeros(32, dtype, device)?;
    let weight = Quantized::of(&ones(32)?)?;
    // One token, an odd number of them, and many: the library chooses its way by that, too.
    for rows in [1, 77, 512] {
        product(&Quantized::of(&ones(rows)?)?, &weight, &bias)?;
    }
    device.synchronize()
}

/// `x [rows, in]` times the transpose of `weight [out, in]`, plus `bias [out]` -> `[rows, out]`, f32 on the CPU and bf16 on
/// CUDA. The codes' products are added up in f32 (on CUDA with the tensor cores' own accumulators, of fewer bits, as torch
/// does where scales are by rows), then multiplied by both rows' scales. On CUDA the bias is left to the next operation.
///
/// # Errors
/// When shapes or devices do not fit, or the device has no such product.
pub(crate) fn product<'a>(x: &Quantized, weight: &Quantized, bias: &'a Tensor) -> Result<Product<'a>> {
    let ((rows, inner), (columns, weight_inner)) = (x.codes.dims2()?, weight.codes.dims2()?);
    if inner != weight_inner || bias.dims() != [columns] {
        bail!("x has {inner} columns, the weight is {columns}x{weight_inner}, the bias {:?}", bias.dims());
    }
    if !bias.device().is_cpu() {
        let values = product_on_device(x, weight)?;
        return Ok(Product { values, bias: Some(Cow::Borrowed(bias)) });
    }
    let (left, right) = (x.unscaled()?, weight.unscaled()?);
    let (row_scales, column_scales) = (x.scales.to_vec1::<f32>()?, weight.scales.to_vec1::<f32>()?);
    let biases = bias.to_vec1::<f32>()?;
    let mut out = vec![0.0_f32; rows * columns];
    let right = MatrixRef::new(&right, columns, inner, inner).transposed();
    multiply(&mut out, MatrixRef::new(&left, rows, inner, inner), right, false, Threads::All);
    out.par_chunks_mut(columns.max(1)).zip(&row_scales).for_each(|(row, row_scale)| {
        for ((value, column_scale), bias) in row.iter_mut().zip(&column_scales).zip(&biases) {
            *value = *value * row_scale * column_scale + bias;
        }
    });
    Ok(Tensor::from_vec(out, (rows, columns), bias.device())?.into())
}

#[cfg(feature = "cuda")]
fn product_on_device(x: &Quantized, weight: &Quantized) -> Result<Tensor> {
    let out = super::cuda::products::product_e4m3([&x.codes, &x.scales], [&weight.codes, &weight.scales])?;
    out.map_or_else(|| bail!("cublasLt has no product of e4m3 with a scale for each row on this device"), Ok)
}

#[cfg(not(feature = "cuda"))]
fn product_on_device(x: &Quantized, _: &Quantized) -> Result<Tensor> {
    bail!("there is no product of e4m3 on {:?}", x.codes.device().location())
}

#[cfg(test)]
mod tests;
