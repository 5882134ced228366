//! Linear layers by cublasLt: bias and GELU in the product's epilogue, the result in a part of a wider matrix if need be.

use std::cell::Cell;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, Device, InplaceOp3, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::cublaslt::{Extent, Multiplication, Operand, multiply};
use super::{CHUNK, Matrix, MatrixMut, with_bias, with_values};

/// Most numbers of a weight that are left to one product. Where addresses are counted in 32 bits, in some kernel of the
/// library, twice as many would still be in reach; the modulation of all blocks has three times as many.
const WEIGHT_NUMBERS_MAX: usize = 1 << 30;

/// A linear layer's product, to be written into a matrix that is there.
pub(in crate::engine::ops) struct LinearInto<'a> {
    /// `[columns]`
    bias: Option<&'a Tensor>,
    /// By GELU's tanh approximation.
    is_activated: bool,
    is_done: Cell<bool>,
}

impl<'a> LinearInto<'a> {
    pub(in crate::engine::ops) fn new(bias: Option<&'a Tensor>, is_activated: bool) -> Self {
        Self { bias, is_activated, is_done: Cell::new(false) }
    }

    /// `target [rows, columns] = activation(x [rows, inner] × weight [columns, inner]ᵀ + bias)`, bf16. Whether it was
    /// done: where the library knows no way, `target` is as good as unwritten.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub(in crate::engine::ops) fn run(&self, target: &Tensor, x: &Tensor, weight: &Tensor) -> Result<bool> {
        let (columns, inner) = weight.dims2()?;
        let parts = (columns * inner).div_ceil(WEIGHT_NUMBERS_MAX).max(1);
        let part_columns = columns.div_ceil(parts).next_multiple_of(CHUNK);
        for start in (0..columns).step_by(part_columns) {
            let width = part_columns.min(columns - start);
            let bias = self.bias.map(|bias| bias.narrow(0, start, width)).transpose()?;
            let part = LinearInto { bias: bias.as_ref(), is_activated: self.is_activated, is_done: Cell::new(false) };
            target.narrow(1, start, width)?.inplace_op3(x, &weight.narrow(0, start, width)?, &part)?;
            if !part.is_done.get() {
                return Ok(false);
            }
        }
        Ok(true)
    }
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
        bail!("products on the CPU make matrices of their own")
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
            let is_done = multiply(
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
            self.is_done.set(is_done);
            Ok(())
        })
    }
}

/// `x weightᵀ` of matrices in e4m3, each with its codes `[rows, width]`, u8, and its rows' scales `[rows]`, f32 ->
/// `[rows of x, rows of weight]`, bf16. `None`: the library has no such product on this device.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub(in crate::engine::ops) fn product_e4m3(x: [&Tensor; 2], weight: [&Tensor; 2]) -> Result<Option<Tensor>> {
    let ((rows, inner), (columns, weight_inner)) = (x[0].dims2()?, weight[0].dims2()?);
    let Device::Cuda(device) = x[0].device() else { bail!("expected tensors on a CUDA device") };
    let stream = device.cuda_stream();
    // SAFETY: the product writes all of it, or it is dropped.
    #[expect(unsafe_code, reason = "memory is not cleared before it is written")]
    let mut out = unsafe { device.alloc::<bf16>(rows * columns) }?;
    let is_done = with_values::<u8, _>(x[0], |x_codes| {
        with_values::<f32, _>(x[1], |x_scales| {
            with_values::<u8, _>(weight[0], |weight_codes| {
                with_values::<f32, _>(weight[1], |weight_scales| {
                    multiply(
                        &stream,
                        &Multiplication {
                            x: Operand::read(x_codes, extent(rows, inner, inner), &stream)?,
                            weight: Operand::read(weight_codes, extent(columns, weight_inner, weight_inner), &stream)?,
                            scales: Some([
                                Operand::read(x_scales, extent(1, rows, rows), &stream)?,
                                Operand::read(weight_scales, extent(1, columns, columns), &stream)?,
                            ]),
                            bias: None,
                            is_activated: false,
                            out: Operand::written(out.slice_mut(..), extent(rows, columns, columns), &stream)?,
                        },
                    )
                })
            })
        })
    })?;
    let out = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, device.clone()));
    Ok(is_done.then(|| Tensor::from_storage(out, (rows, columns), BackpropOp::none(), false)))
}

fn extent(rows: usize, width: usize, stride: usize) -> Extent {
    Extent { rows, width, stride }
}
