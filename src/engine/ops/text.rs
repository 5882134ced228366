//! T5's operations on each token by itself, besides linear layers.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::gelu_tanh_of;
use super::vector::{rms_normalize, vectorized};
use super::{Rows, contiguous, is_on_cpu, is_on_cuda};

/// RMSNorm: `x scale / sqrt(mean(x²) + epsilon)`, row by row, with its statistics in f32.
///
/// `x [rows, width]`, `scale [width]`, of one dtype -> the same as `x`.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn rms_norm(x: &Tensor, scale: &Tensor, epsilon: f64) -> Result<Tensor> {
    if is_on_cpu(x) || (is_on_cuda(&[x, scale]) && x.is_contiguous()) {
        return x.apply_op2_no_bwd(scale, &RmsNorm { epsilon: epsilon as f32 });
    }
    rms_norm_composed(x, scale, epsilon)
}

fn rms_norm_composed(x: &Tensor, scale: &Tensor, epsilon: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = wide.broadcast_div(&(mean_square + epsilon)?.sqrt()?)?;
    normed.to_dtype(x.dtype())?.broadcast_mul(scale)
}

/// `gelu_tanh(gate) × up` of rows `[gate | up]`: `[rows, 2 × width]` -> `[rows, width]`.
///
/// # Errors
/// When the width is odd, or the device fails.
pub(crate) fn gated_gelu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(1)? / 2;
    if is_on_cpu(x) || (is_on_cuda(&[x]) && x.is_contiguous() && width.is_multiple_of(8)) {
        return x.apply_op1_no_bwd(&GatedGelu);
    }
    gated_gelu_composed(x)
}

fn gated_gelu_composed(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, 1)?;
    halves[0].gelu()? * &halves[1]
}

vectorized! {
    /// A row of [`RmsNorm`].
    fn rms_normalize_row<'a>(values: &'a [f32], scale: &'a [f32], epsilon: f32, out: &'a mut [f32]) {
        rms_normalize(values, scale, epsilon, out);
    }

    /// A row of [`GatedGelu`].
    fn gate_by_gelu<'a>(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gelu_tanh_of(gate) * up;
        }
    }
}

struct RmsNorm {
    epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, scale: &CpuStorage, sl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (Rows::new(x, xl)?, contiguous(scale, sl)?);
        if scale.len() != x.width {
            bail!("RMSNorm: {} scales for rows of {} values", scale.len(), x.width);
        }
        let mut out = vec![0.0_f32; x.count * x.width];
        out.par_chunks_mut(x.width.max(1)).enumerate().for_each(|(row, out)| {
            rms_normalize_row(x.row(row), scale, self.epsilon, out);
        });
        Ok((CpuStorage::F32(out), Shape::from((x.count, x.width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, scale: &CudaStorage, sl: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::text::rms_norm((x, xl), (scale, sl), self.epsilon)
    }
}

struct GatedGelu;

impl CustomOp1 for GatedGelu {
    fn name(&self) -> &'static str {
        "gated-gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::new(x, layout)?;
        let width = x.width / 2;
        if 2 * width != x.width {
            bail!("gated GELU: rows of {} values have no halves", x.width);
        }
        let mut out = vec![0.0_f32; x.count * width];
        out.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, out)| {
            let (gate, up) = x.row(row).split_at(width);
            gate_by_gelu(gate, up, out);
        });
        Ok((CpuStorage::F32(out), Shape::from((x.count, width))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::text::gated_gelu(x, layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(rows: usize, width: usize, deviation: f32) -> Tensor {
        Tensor::randn(0.0_f32, deviation, (rows, width), &Device::Cpu).expect("randn")
    }

    /// Relative to the largest value.
    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        let largest = |x: &Tensor| x.abs().and_then(|x| x.max_all()?.to_scalar::<f32>()).expect("values");
        largest(&(a - b).expect("same shapes")) / largest(b)
    }

    #[test]
    fn the_fused_norm_equals_the_composed_one() {
        for (rows, width, deviation) in [(1, 8, 1.0), (7, 100, 1000.0), (3, 4096, 1e-3)] {
            let (x, scale) = (random(rows, width, deviation), random(1, width, 1.0).squeeze(0).expect("one row"));
            let fused = rms_norm(&x, &scale, 1e-6).expect("fused");
            let composed = rms_norm_composed(&x, &scale, 1e-6).expect("composed");
            assert!(largest_difference(&fused, &composed) < 1e-6, "{rows}x{width}");
        }
        assert!(rms_norm(&random(2, 8, 1.0), &random(1, 9, 1.0).squeeze(0).expect("one row"), 1e-6).is_err());
    }

    #[test]
    fn the_fused_gate_equals_the_composed_one() {
        for (rows, width) in [(1, 22), (5, 26), (2, 2048)] {
            let x = random(rows, width, 3.0);
            let (fused, composed) = (gated_gelu(&x).expect("fused"), gated_gelu_composed(&x).expect("composed"));
            assert_eq!(fused.dims(), [rows, width / 2]);
            assert!(largest_difference(&fused, &composed) < 1e-6, "{rows}x{width}");
        }
        assert!(gated_gelu(&random(2, 7, 1.0)).is_err());
    }
}
