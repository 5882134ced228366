//! Elementwise activations.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matrix_product::MatrixProduct;
use super::vector::{exp, vectorized};
use super::{Rows, is_on_cpu};

/// Values of one task.
const CHUNK: usize = 16 * 1024;

/// GELU by its tanh approximation, elementwise on a matrix whose rows may be apart.
///
/// # Errors
/// When the device fails.
pub(crate) fn gelu_tanh(x: &MatrixProduct) -> Result<Tensor> {
    if (is_on_cpu(&x.values) && x.bias().is_none()) || (x.is_on_cuda() && x.values.rank() == 2) {
        return x.values.apply_op1_no_bwd(&Elementwise::GeluTanh { bias: x.bias() });
    }
    x.biased()?.gelu()
}

/// `[left | gelu_tanh(right)]`: attention and the feed-forward half of a single block side by side, where the two do not
/// write into one matrix themselves.
///
/// `left [rows, a]`, `right [rows, b]` (its rows may be a narrow slice of a wider matrix) -> `[rows, a + b]`.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn beside_gelu_tanh(left: &Tensor, right: &MatrixProduct) -> Result<Tensor> {
    if is_on_cpu(left) && right.bias().is_none() {
        return left.apply_op2_no_bwd(&right.values, &BesideGeluTanh);
    }
    Tensor::cat(&[left, &gelu_tanh(right)?], 1)
}

struct BesideGeluTanh;

impl CustomOp2 for BesideGeluTanh {
    fn name(&self) -> &'static str {
        "beside-gelu-tanh"
    }

    fn cpu_fwd(&self, left: &CpuStorage, ll: &Layout, right: &CpuStorage, rl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (left, right) = (Rows::new(left, ll)?, Rows::new(right, rl)?);
        if left.count != right.count {
            bail!("{} rows beside {}", left.count, right.count);
        }
        let width = left.width + right.width;
        let mut out = vec![0.0_f32; left.count * width];
        out.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, out)| {
            let (out_left, out_right) = out.split_at_mut(left.width);
            out_left.copy_from_slice(left.row(row));
            Elementwise::GeluTanh { bias: None }.map(right.row(row), out_right);
        });
        Ok((CpuStorage::F32(out), Shape::from((left.count, width))))
    }
}

/// SiLU (`x × sigmoid(x)`), elementwise.
///
/// # Errors
/// When the device fails.
pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    if is_on_cpu(x) { x.apply_op1_no_bwd(&Elementwise::Silu) } else { x.silu() }
}

enum Elementwise<'a> {
    GeluTanh {
        /// Only on CUDA.
        #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU the bias has been added"))]
        bias: Option<&'a Tensor>,
    },
    Silu,
}

#[inline(always)]
pub(super) fn gelu_tanh_of(x: f32) -> f32 {
    // 0.5 x (1 + tanh u) = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3): one exponential, no cancellation.
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
pub(super) fn silu_of(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

vectorized! {
    fn gelu_tanh_each<'a>(input: &'a [f32], output: &'a mut [f32]) {
        for (out, &x) in output.iter_mut().zip(input) {
            *out = gelu_tanh_of(x);
        }
    }

    fn silu_each<'a>(input: &'a [f32], output: &'a mut [f32]) {
        for (out, &x) in output.iter_mut().zip(input) {
            *out = silu_of(x);
        }
    }
}

impl Elementwise<'_> {
    fn map(&self, input: &[f32], output: &mut [f32]) {
        match self {
            Self::GeluTanh { .. } => gelu_tanh_each(input, output),
            Self::Silu => silu_each(input, output),
        }
    }
}

impl CustomOp1 for Elementwise<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::GeluTanh { .. } => "gelu-tanh",
            Self::Silu => "silu",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = layout.shape().clone();
        let mut out = vec![0.0_f32; shape.elem_count()];
        if let Some((start, end)) = layout.contiguous_offsets() {
            let input = &storage.as_slice::<f32>()?[start..end];
            out.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK)).for_each(|(out, input)| self.map(input, out));
        } else {
            let rows = Rows::new(storage, layout)?;
            out.par_chunks_mut(rows.width.max(1)).enumerate().for_each(|(index, out)| self.map(rows.row(index), out));
        }
        Ok((CpuStorage::F32(out), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self {
            Self::GeluTanh { bias } => super::cuda::rows::gelu_tanh(x, layout, *bias),
            Self::Silu => bail!("there is no kernel for SiLU alone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes")
    }

    #[test]
    fn the_fused_activations_equal_the_composed_ones() {
        let values: Vec<f32> = (-4000..4000).map(|i| i as f32 / 250.0).chain([0.0, 1e4, -1e4, 60.0, -60.0]).collect();
        let x = Tensor::new(values, &Device::Cpu).expect("tensor");
        assert!(largest_difference(&gelu_tanh(&x.clone().into()).expect("gelu"), &x.gelu().expect("gelu")) < 2e-6);
        assert!(largest_difference(&silu(&x).expect("silu"), &x.silu().expect("silu")) < 2e-6);
    }

    #[test]
    fn rows_that_are_apart_are_read_in_place() {
        let wide = Tensor::arange(0.0_f32, 60.0, &Device::Cpu).expect("tensor").reshape((5, 12)).expect("reshape");
        let narrow = wide.narrow(1, 3, 7).expect("narrow");
        let copied = narrow.contiguous().expect("contiguous");
        let fed = gelu_tanh(&copied.into()).expect("fed");
        assert_eq!(largest_difference(&gelu_tanh(&narrow.clone().into()).expect("narrow"), &fed), 0.0);
        let left = wide.narrow(1, 0, 3).and_then(|left| left.contiguous()).expect("left");
        let beside = beside_gelu_tanh(&left, &narrow.into()).expect("beside");
        assert_eq!(largest_difference(&beside, &Tensor::cat(&[left, fed], 1).expect("cat")), 0.0);
    }
}
