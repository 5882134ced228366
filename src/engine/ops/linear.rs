//! `x Wᵀ + b` over a packed stream.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use rayon::prelude::*;

use super::gemm::{MatrixRef, Threads, multiply};
use super::{Rows, contiguous, is_on_cpu};

/// `x [rows, in]` times the transpose of `weight [out, in]`, plus `bias [out]` -> `[rows, out]`. Any float dtype, the
/// same for all; f32 on the CPU gives each row the same bits however many rows there are.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) if is_on_cpu(x) => x.apply_op3_no_bwd(weight, bias, &CpuLinear),
        None if is_on_cpu(x) => x.apply_op2_no_bwd(weight, &CpuLinear),
        Some(bias) => x.matmul(&weight.t()?)?.broadcast_add(bias),
        None => x.matmul(&weight.t()?),
    }
}

struct CpuLinear;

impl CpuLinear {
    fn run(x: Rows, weight: Rows, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let columns = weight.count;
        if x.width != weight.width || bias.is_some_and(|bias| bias.len() != columns) {
            candle_core::bail!("linear: x has {} columns, the weight is {}x{}", x.width, columns, weight.width);
        }
        // Fresh memory is zero and costs nothing until it is touched, which all threads then do together.
        let mut out = vec![0.0_f32; x.count * columns];
        if let Some(bias) = bias {
            out.par_chunks_exact_mut(columns).for_each(|row| row.copy_from_slice(bias));
        }
        let left = MatrixRef::new(x.values, x.count, x.width, x.stride);
        let right = MatrixRef::new(weight.values, columns, weight.width, weight.stride).transposed();
        multiply(&mut out, left, right, bias.is_some(), Threads::All);
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
