//! [`linear`](super::linear::linear) on the CPU with a weight that is expanded tile by tile inside the product: the memory's
//! traffic is that of the codes, and no copy in f32 is ever whole.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::gemm::expanded::{ExpandRows, multiply_expanded};
use super::gemm::rounded::multiply_rounded;
use super::gemm::{MatrixRef, Onto};
use super::{Rows, contiguous, is_on_cpu};

/// `x [rows, in]` times the transpose of `weight [out, in]`, plus `bias [out]` -> `[rows, out]`, f32 on the CPU. The bits of
/// `linear` with the expanded weight.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or the weight cannot be read.
pub(crate) fn expanded_linear(x: &Tensor, weight: &dyn ExpandRows, bias: Option<&Tensor>) -> Result<Tensor> {
    of(x, bias, &Expanded { weight, multiply: multiply_expanded })
}

/// [`expanded_linear`] of an input and a weight that are rounded to bf16, with sums in f32.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or the weight cannot be read.
pub(crate) fn rounded_linear(x: &Tensor, weight: &dyn ExpandRows, bias: Option<&Tensor>) -> Result<Tensor> {
    of(x, bias, &Expanded { weight, multiply: multiply_rounded })
}

fn of(x: &Tensor, bias: Option<&Tensor>, product: &Expanded) -> Result<Tensor> {
    if !is_on_cpu(x) {
        bail!("a weight is expanded in the product on the CPU in f32 alone, and the input is {:?}", x.dtype());
    }
    match bias {
        Some(bias) => x.apply_op2_no_bwd(bias, product),
        None => x.apply_op1_no_bwd(product),
    }
}

struct Expanded<'a> {
    weight: &'a dyn ExpandRows,
    multiply: fn(&mut [f32], MatrixRef, &dyn ExpandRows, Onto) -> Result<()>,
}

impl Expanded<'_> {
    fn run(&self, x: Rows, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (columns, width) = (self.weight.rows(), self.weight.columns());
        if x.width != width || bias.is_some_and(|bias| bias.len() != columns) {
            bail!("linear: x has {} columns, the weight is {columns}x{width}", x.width);
        }
        let mut out = vec![0.0_f32; x.count * columns];
        let left = MatrixRef::new(x.values, x.count, x.width, x.stride);
        (self.multiply)(&mut out, left, self.weight, Onto::of(bias))?;
        Ok((CpuStorage::F32(out), Shape::from((x.count, columns))))
    }
}

impl CustomOp1 for Expanded<'_> {
    fn name(&self) -> &'static str {
        "expanded-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(Rows::new(x, xl)?, None)
    }
}

impl CustomOp2 for Expanded<'_> {
    fn name(&self) -> &'static str {
        "expanded-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(Rows::new(x, xl)?, Some(contiguous(b, bl)?))
    }
}
