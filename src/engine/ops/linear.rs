//! `x Wᵀ + b` over a packed stream.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::activation::gelu_tanh;
use super::cuda::{self, linear::linear_into};
use super::gemm::{MatrixRef, Onto, Threads, multiply};
use super::matrix_product::MatrixProduct;
use super::{Rows, contiguous, is_on_cpu, is_on_cuda, unwritten};

/// `x [rows, in]` times the transpose of `weight [out, in]`, plus `bias [out]` -> `[rows, out]`. Any float dtype, the
/// same for all; f32 on the CPU gives each row the same bits however many rows there are.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) if is_on_cpu(x) => return x.apply_op3_no_bwd(weight, bias, &CpuLinear),
        None if is_on_cpu(x) => return x.apply_op2_no_bwd(weight, &CpuLinear),
        _ => {}
    }
    match (fused(x, weight, bias, false)?, bias) {
        (Some(out), _) => Ok(out),
        (None, Some(bias)) => x.matmul(&weight.t()?)?.broadcast_add(bias),
        (None, None) => x.matmul(&weight.t()?),
    }
}

/// GELU by its tanh approximation of [`linear`]: on Hopper in the GEMM's epilogue, before the result is rounded.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn gelu_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if is_gelu_fused(cuda::capability(x.device()))
        && let Some(out) = fused(x, weight, bias, true)?
    {
        return Ok(out);
    }
    gelu_tanh(&matrix_product(x, weight, bias)?)
}

/// [`gelu_linear`] into the columns of a wider matrix from `start` on; the other columns are unchanged.
///
/// `wide [rows, at least start + out]`, contiguous; no operand is part of it.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn gelu_linear_into(
    wide: &Tensor,
    start: usize,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<()> {
    let target = wide.narrow(1, start, weight.dim(0)?)?;
    let is_fusible = is_gelu_fused(cuda::capability(x.device())) && is_fusible(&target, x, weight, bias);
    if is_fusible && linear_into(&target, x, weight, bias, true)? {
        return Ok(());
    }
    wide.slice_set(&gelu_tanh(&matrix_product(x, weight, bias)?)?, 1, start)
}

/// Whether cublasLt has GELU in the GEMM's own kernel on a device of this compute capability. Elsewhere its epilogue is a second
/// kernel that was measured to be slower than ours (karpathy/llm.c#338 on 8.0, sgl-project/sglang#34350 on 12.0).
fn is_gelu_fused(capability: Option<(i32, i32)>) -> bool {
    capability.is_some_and(|(major, _)| major == 9)
}

/// By cublasLt, with bias and GELU in the epilogue. `None` where it is not available, or not for these shapes.
fn fused(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, is_activated: bool) -> Result<Option<Tensor>> {
    if !is_on_cuda(&[x]) || x.rank() != 2 {
        return Ok(None);
    }
    let out = unwritten(x.dim(0)?, weight.dim(0)?, x)?;
    let is_computed = is_fusible(&out, x, weight, bias) && linear_into(&out, x, weight, bias, is_activated)?;
    Ok(is_computed.then_some(out))
}

/// Whether cublasLt takes these operands.
fn is_fusible(target: &Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    let is_there = |tensor: &&Tensor| tensor.rank() == 2 && tensor.elem_count() > 0;
    let matrices = [target, x, weight];
    matrices.iter().all(is_there) && is_on_cuda(&matrices) && bias.is_none_or(|bias| is_on_cuda(&[bias]))
}

/// [`linear`], whose bias the next operation may add.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn matrix_product<'a>(x: &Tensor, weight: &Tensor, bias: Option<&'a Tensor>) -> Result<MatrixProduct<'a>> {
    if is_on_cuda(&[x]) {
        return Ok(MatrixProduct { values: linear(x, weight, None)?, bias: bias.map(Cow::Borrowed) });
    }
    Ok(linear(x, weight, bias)?.into())
}

struct CpuLinear;

impl CpuLinear {
    fn run(x: Rows, weight: Rows, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let columns = weight.count;
        if x.width != weight.width || bias.is_some_and(|bias| bias.len() != columns) {
            candle_core::bail!("linear: x has {} columns, the weight is {}x{}", x.width, columns, weight.width);
        }
        // Zeroed memory costs nothing until it is written, which all threads then do together.
        let mut out = vec![0.0_f32; x.count * columns];
        let left = MatrixRef::new(x.values, x.count, x.width, x.stride);
        let right = MatrixRef::new(weight.values, columns, weight.width, weight.stride).transposed();
        multiply(&mut out, left, right, Onto::of(bias), Threads::All);
        Ok((CpuStorage::F32(out), Shape::from((x.count, columns))))
    }
}

impl CustomOp2 for CpuLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::run(Rows::new(x, xl)?, Rows::new(w, wl)?, None)
    }
}

impl CustomOp3 for CpuLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::run(Rows::new(x, xl)?, Rows::new(w, wl)?, Some(contiguous(b, bl)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0.0_f32, 1.0, (rows, columns), &Device::Cpu).expect("randn")
    }

    #[test]
    fn gelu_is_in_the_matrix_product_on_hopper_alone() {
        let devices = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];
        let fused: Vec<_> = devices.into_iter().filter(|&capability| is_gelu_fused(Some(capability))).collect();
        assert_eq!(fused, [(9, 0)]);
        assert!(!is_gelu_fused(None), "the CPU, or a driver that does not tell");
    }

    #[test]
    fn a_layer_writes_into_part_of_a_wider_matrix_and_the_rest_stays() {
        let (x, weight) = (random(5, 16), random(24, 16));
        let bias = random(1, 24).squeeze(0).expect("a row");
        let wide = random(5, 40);
        let before = wide.copy().expect("copy");
        gelu_linear_into(&wide, 8, &x, &weight, Some(&bias)).expect("into");
        let fed = gelu_linear(&x, &weight, Some(&bias)).expect("fed");
        let parts = [before.narrow(1, 0, 8), Ok(fed), before.narrow(1, 32, 8)].map(|part| part.expect("a part"));
        let expected = Tensor::cat(&parts, 1).expect("side by side");
        assert_eq!(wide.to_vec2::<f32>().expect("values"), expected.to_vec2::<f32>().expect("values"));
        assert!(gelu_linear_into(&wide, 24, &x, &weight, Some(&bias)).is_err(), "beyond the end");
    }
}
