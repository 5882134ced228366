//! Matrices in fp8 (e4m3), for GEMMs at twice the rate: lossy.
//!
//! Each row has a scale of its own, so that quantization is batch-invariant. The scale is the row's largest magnitude divided
//! by 448, in f32, and the codes are the row's values times the scale's inverse (rounded to f32), rounded to the nearest
//! e4m3, ties to even. A row without a value as large as 448 × 2⁻¹²⁶ has the scale 1, and becomes zeros. A finite row stays
//! finite. A row with a value that is not finite has NaN for a scale, so that its outputs are NaN: an image with an error is
//! still detected.
//!
//! On CUDA in bf16 a kernel quantizes (`kernels/quantize.cu`) and the tensor cores multiply the codes; [`Scaling`] says what
//! applies the scales. On the CPU in f32 the same codes are multiplied as f32: no faster, but with the same loss.

mod e4m3;
pub(super) mod scaling;
mod trial;
pub(super) mod widths;

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::activation::{beside_gelu_tanh, gelu_tanh};
use super::gemm::{MatrixRef, Onto, Threads, multiply};
use super::matrix_product::MatrixProduct;
use super::modulation::{EPSILON as LAYER_NORM_EPSILON, modulated_layer_norm};
use super::vector::vectorized;
use super::{Rows, Segments, cuda, is_launchable, is_on_cpu, is_on_cuda};

pub(crate) use scaling::Scaling;
pub(crate) use widths::is_possible;

/// The smallest largest value of a row, 448 × 2⁻¹²⁶, whose scale surely has a finite inverse.
const SMALLEST_SCALED: f32 = e4m3::LARGEST * f32::MIN_POSITIVE;

/// A matrix in e4m3 whose element (i, j) is `codes[i, j] × scales[i]`.
#[derive(Debug, Clone)]
pub(crate) struct Quantized {
    /// `[rows, width]`, u8, contiguous.
    codes: Tensor,
    /// `[rows]`, f32.
    scales: Tensor,
}

impl Quantized {
    /// Quantizes each row of `x [rows, width]`: f32 on the CPU, bf16 on CUDA, where widths are multiples of 16.
    ///
    /// # Errors
    /// When the device cannot, or is out of memory.
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        if is_on_cpu(x) {
            return Self::of_cpu(x);
        }
        if is_on_cuda(&[x]) {
            let [codes, scales] = cuda::quantize::rows(x)?;
            return Ok(Self { codes, scales });
        }
        bail!("rows of {:?} cannot be quantized to e4m3 on {:?}", x.dtype(), x.device().location())
    }

    /// A matrix that is in e4m3 already: codes `[rows, width]`, u8, and a scale for each row.
    ///
    /// # Errors
    /// When they are no such matrix, or the device is out of memory.
    pub(crate) fn from_codes(codes: Tensor, scales: &[f32]) -> Result<Self> {
        let is_matrix = codes.dtype() == DType::U8 && codes.is_contiguous();
        if !is_matrix || codes.dims2()?.0 != scales.len() {
            bail!("{:?} of {:?} and {} scales are no matrix in e4m3", codes.dims(), codes.dtype(), scales.len());
        }
        let scales = Tensor::new(scales, codes.device())?;
        Ok(Self { codes, scales })
    }

    /// [`modulated_layer_norm`], quantized; on CUDA in one pass over the memory.
    ///
    /// # Errors
    /// As [`Self::of`], or when shapes do not fit.
    pub(crate) fn of_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, segments: &Segments) -> Result<Self> {
        if is_on_cuda(&[x, shift, scale]) && is_launchable(segments) && cuda::quantize::is_narrow(x.dim(1)?) {
            let (by, epsilon) = ([shift, scale], LAYER_NORM_EPSILON as f32);
            let [codes, scales] = cuda::quantize::modulated_layer_norm(x, by, segments, epsilon)?;
            return Ok(Self { codes, scales });
        }
        Self::of(&modulated_layer_norm(x, shift, scale, segments)?)
    }

    /// [`gelu_tanh`] or, with a left side, [`beside_gelu_tanh`], quantized; on CUDA in one pass over the memory.
    ///
    /// # Errors
    /// As [`Self::of`], or when shapes do not fit.
    pub(crate) fn of_gelu_tanh(left: Option<&Tensor>, right: &MatrixProduct) -> Result<Self> {
        if right.is_on_cuda() && left.is_none_or(|left| is_on_cuda(&[left])) {
            let [codes, scales] = cuda::quantize::beside_gelu_tanh(left, &right.values, right.bias())?;
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
            *scale = quantize_row(rows.row(index), codes);
        });
        Ok(Self {
            codes: Tensor::from_vec(codes, (rows.count, rows.width), x.device())?,
            scales: Tensor::from_vec(scales, rows.count, x.device())?,
        })
    }

    /// The values of the codes, before scaling, on the CPU.
    fn unscaled(&self) -> Result<Vec<f32>> {
        let codes = self.codes.flatten_all()?.to_vec1::<u8>()?;
        Ok(codes.into_par_iter().map(|code| e4m3::VALUES[usize::from(code)]).collect())
    }

    /// The size in memory, in bytes.
    pub(crate) fn bytes(rows: usize, width: usize) -> usize {
        rows * width + rows * size_of::<f32>()
    }
}

/// The scale and the codes of numbers that all have one scale, as files have it for a matrix. NaN for a scale where a number
/// is not finite.
pub(crate) fn with_one_scale(numbers: &[f32]) -> (f32, Vec<u8>) {
    // The bits of magnitudes have the order of the numbers.
    let largest = numbers.par_iter().map(|number| number.abs().to_bits()).max().unwrap_or_default();
    let scale = scale_of(&[f32::from_bits(largest)]);
    let inverse = 1.0 / scale;
    (scale, numbers.par_iter().map(|number| e4m3::code_of(number * inverse)).collect())
}

vectorized! {
    /// Writes the codes of a row, and returns its scale.
    fn quantize_row<'a>(row: &'a [f32], codes: &'a mut [u8]) -> f32 {
        let scale = scale_of(row);
        let inverse = 1.0 / scale;
        for (code, value) in codes.iter_mut().zip(row) {
            *code = e4m3::code_of(value * inverse);
        }
        scale
    }
}

/// The scale of a row.
#[inline(always)]
fn scale_of(row: &[f32]) -> f32 {
    // The bits of magnitudes have the order of the numbers, with infinity and NaN above all.
    let largest = row.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    match largest {
        _ if !largest.is_finite() => f32::NAN,
        _ if largest < SMALLEST_SCALED => 1.0,
        _ => largest / e4m3::LARGEST,
    }
}

/// Runs small e4m3 GEMMs on a device whose numbers are `dtype`, and checks the results.
///
/// # Errors
/// When the device does not support them, or a result is wrong.
pub(crate) fn try_on(device: &Device, dtype: DType) -> Result<()> {
    let bias = Tensor::zeros(trial::COLUMNS, dtype, device)?;
    let weight = Quantized::of(&trial::weight(dtype, device)?)?;
    // One token, an odd number, and many: the library's choice of algorithm depends on it.
    for rows in [1, 77, 512] {
        let out = product(&Quantized::of(&trial::x(rows, dtype, device)?)?, &weight, Some(&bias))?;
        trial::check(&out.biased()?)?;
    }
    Ok(())
}

/// `x [rows, in]` times the transpose of `weight [out, in]`, plus `bias [out]` -> `[rows, out]`, f32 on the CPU and bf16 on
/// CUDA. Sums are in f32 (on Hopper in the tensor cores' accumulators, of fewer bits, as torch does for scales by rows), then
/// multiplied by both rows' scales. On CUDA the next operation adds the bias.
///
/// # Errors
/// When shapes or devices do not fit, or the device has no such GEMM.
pub(crate) fn product<'a>(x: &Quantized, weight: &Quantized, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
    product_by(None, x, weight, bias)
}

/// [`product`], with the scales applied in one way, which need not be the device's own: by `None` it is. The CPU has one way.
///
/// # Errors
/// As [`product`].
pub(crate) fn product_by<'a>(
    scaling: Option<Scaling>,
    x: &Quantized,
    weight: &Quantized,
    bias: Option<&'a Tensor>,
) -> Result<MatrixProduct<'a>> {
    let ((rows, inner), (columns, weight_inner)) = (x.codes.dims2()?, weight.codes.dims2()?);
    if inner != weight_inner || bias.is_some_and(|bias| bias.dims() != [columns]) {
        let bias = bias.map(Tensor::dims);
        bail!("x has {inner} columns, the weight is {columns}x{weight_inner}, the bias {bias:?}");
    }
    if !x.codes.device().is_cpu() {
        return Ok(MatrixProduct { values: product_on_device(scaling, x, weight)?, bias: bias.map(Cow::Borrowed) });
    }
    let (left, right) = (x.unscaled()?, weight.unscaled()?);
    let (row_scales, column_scales) = (x.scales.to_vec1::<f32>()?, weight.scales.to_vec1::<f32>()?);
    let biases = bias.map_or_else(|| Ok(vec![0.0; columns]), Tensor::to_vec1::<f32>)?;
    let mut out = vec![0.0_f32; rows * columns];
    let right = MatrixRef::new(&right, columns, inner, inner).transposed();
    multiply(&mut out, MatrixRef::new(&left, rows, inner, inner), right, Onto::Nothing, Threads::All);
    out.par_chunks_mut(columns.max(1)).zip(&row_scales).for_each(|(row, row_scale)| {
        for ((value, column_scale), bias) in row.iter_mut().zip(&column_scales).zip(&biases) {
            *value = *value * row_scale * column_scale + bias;
        }
    });
    Ok(Tensor::from_vec(out, (rows, columns), x.codes.device())?.into())
}

fn product_on_device(scaling: Option<Scaling>, x: &Quantized, weight: &Quantized) -> Result<Tensor> {
    let by = |scaling| cuda::linear::product_e4m3([&x.codes, &x.scales], [&weight.codes, &weight.scales], scaling);
    let ways: &[Scaling] = match scaling.or_else(|| cuda::capability(x.codes.device()).and_then(Scaling::of)) {
        Some(Scaling::InProduct) if scaling.is_none() => &[Scaling::InProduct, Scaling::Afterwards],
        Some(Scaling::InProduct) => &[Scaling::InProduct],
        Some(Scaling::Afterwards) | None => &[Scaling::Afterwards],
    };
    for way in ways {
        if let Some(out) = by(*way)? {
            return Ok(out);
        }
    }
    bail!("cublasLt has no GEMM of e4m3 on this device, with scales {ways:?}")
}

#[cfg(test)]
mod tests;
