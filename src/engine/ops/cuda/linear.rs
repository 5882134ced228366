//! Linear layers by cublasLt: bias and GELU are in the GEMM's epilogue, and the result may be part of a wider matrix.

use std::cell::Cell;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, Device, InplaceOp3, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::cublaslt::{Extent, Multiplication, Operand, multiply};
use super::{CHUNK, Matrix, MatrixMut, scale, with_bias, with_values};
use crate::engine::ops::quantize::scaling::Scaling;

/// Maximum numbers of a weight in one GEMM. A kernel of the library that counts addresses in 32 bits reaches twice as many; the
/// modulation of all blocks has three times as many.
const WEIGHT_NUMBERS_MAX: usize = 1 << 30;

/// `target [rows, columns] = activation(x [rows, inner] × weight [columns, inner]ᵀ + bias [columns])`, bf16; the activation is
/// GELU's tanh approximation or none. `false`: the library has no algorithm for it, and `target` is unspecified.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub(in crate::engine::ops) fn linear_into(
    target: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    is_activated: bool,
) -> Result<bool> {
    let (columns, inner) = weight.dims2()?;
    let parts = (columns * inner).div_ceil(WEIGHT_NUMBERS_MAX).max(1);
    let part_columns = columns.div_ceil(parts).next_multiple_of(CHUNK);
    for start in (0..columns).step_by(part_columns) {
        let width = part_columns.min(columns - start);
        let bias = bias.map(|bias| bias.narrow(0, start, width)).transpose()?;
        let part = LinearInto { bias: bias.as_ref(), is_activated, is_computed: Cell::new(false) };
        target.narrow(1, start, width)?.inplace_op3(x, &weight.narrow(0, start, width)?, &part)?;
        if !part.is_computed.get() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One GEMM into an existing matrix.
struct LinearInto<'a> {
    /// `[columns]`
    bias: Option<&'a Tensor>,
    is_activated: bool,
    is_computed: Cell<bool>,
}

impl InplaceOp3 for LinearInto<'_> {
    fn name(&self) -> &'static str {
        "linear-into"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        bail!("a linear layer on the CPU returns a matrix of its own")
    }

    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_l: &Layout,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        weight_l: &Layout,
    ) -> Result<()> {
        let stream = x.device().cuda_stream();
        let (x, weight) = (Matrix::new(x, xl)?, Matrix::new(weight, weight_l)?);
        let out = MatrixMut::new(target, target_l)?;
        let columns = out.width;
        with_bias(self.bias, columns, |bias| {
            let is_computed = multiply(
                &stream,
                &Multiplication {
                    x: Operand::read(x.values, extent(x.rows, x.width, x.stride), &stream)?,
                    weight: Operand::read(weight.values, extent(weight.rows, weight.width, weight.stride), &stream)?,
                    scales: None,
                    bias: bias.map(|bias| Operand::read(bias, extent(1, columns, columns), &stream)).transpose()?,
                    is_activated: self.is_activated,
                    out: Operand::written(out.values, extent(out.rows, out.width, out.stride), &stream)?,
                },
            )?;
            self.is_computed.set(is_computed);
            Ok(())
        })
    }
}

/// `x weightᵀ` of matrices in e4m3, each as codes `[rows, width]`, u8, and scales of the rows `[rows]`, f32 ->
/// `[rows of x, rows of weight]`, bf16. `None`: the library has no such GEMM on this device.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub(in crate::engine::ops) fn product_e4m3(
    x: [&Tensor; 2],
    weight: [&Tensor; 2],
    scaling: Scaling,
) -> Result<Option<Tensor>> {
    let ((rows, inner), (columns, weight_inner)) = (x[0].dims2()?, weight[0].dims2()?);
    let Device::Cuda(device) = x[0].device() else { bail!("expected tensors on a CUDA device") };
    let stream = device.cuda_stream();
    // SAFETY: the GEMM writes all of it, or it is dropped.
    #[expect(unsafe_code, reason = "the memory is written without being cleared")]
    let mut out = unsafe { device.alloc::<bf16>(rows * columns) }?;
    let is_computed = with_values::<u8, _>(x[0], |x_codes| {
        with_values::<f32, _>(x[1], |x_scales| {
            with_values::<u8, _>(weight[0], |weight_codes| {
                with_values::<f32, _>(weight[1], |weight_scales| {
                    multiply(
                        &stream,
                        &Multiplication {
                            x: Operand::read(x_codes, extent(rows, inner, inner), &stream)?,
                            weight: Operand::read(weight_codes, extent(columns, weight_inner, weight_inner), &stream)?,
                            scales: match scaling {
                                Scaling::InProduct => Some([
                                    Operand::read(x_scales, extent(1, rows, rows), &stream)?,
                                    Operand::read(weight_scales, extent(1, columns, columns), &stream)?,
                                ]),
                                Scaling::Afterwards => None,
                            },
                            bias: None,
                            is_activated: false,
                            out: Operand::written(out.slice_mut(..), extent(rows, columns, columns), &stream)?,
                        },
                    )
                })
            })
        })
    })?;
    if is_computed && scaling == Scaling::Afterwards {
        scale::rows_and_columns(&mut out, x[1], weight[1], device)?;
    }
    let out = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, device.clone()));
    Ok(is_computed.then(|| Tensor::from_storage(out, (rows, columns), BackpropOp::none(), false)))
}

fn extent(rows: usize, width: usize, stride: usize) -> Extent {
    Extent { rows, width, stride }
}
