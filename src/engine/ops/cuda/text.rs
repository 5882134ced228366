//! Launches of T5's kernels: `kernels/text.cu`, and attention with a bias in `kernels/attention.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{Bounds, Matrix, THREADS, attention, grid, number, values_of, with_values};
use crate::engine::ops::segments::Segments;

const KERNELS: Kernels = Kernels::new("text", include_bytes!(concat!(env!("OUT_DIR"), "/text.fatbin")));

/// Widths of a head that attention with a bias is compiled for.
pub(in crate::engine::ops) const HEAD_WIDTHS: [usize; 3] = [16, 32, 64];

/// [`crate::engine::ops::attention::biased_attention`], for a contiguous `qkv` and a head width of [`HEAD_WIDTHS`].
pub(in crate::engine::ops) fn biased_attention(
    storage: &CudaStorage,
    layout: &Layout,
    heads: usize,
    bias: &Tensor,
) -> Result<(CudaStorage, Shape)> {
    let qkv = Matrix::new(storage, layout)?;
    let part = qkv.width / 3;
    let head_width = part / heads;
    let fits = qkv.stride == qkv.width && 3 * heads * head_width == qkv.width && bias.dims() == [heads, 2 * qkv.rows];
    if !fits || !HEAD_WIDTHS.contains(&head_width) {
        bail!("attention: {}x{} does not fit {heads} heads and a bias of {:?}", qkv.rows, qkv.width, bias.dims());
    }
    attention::check_row(&qkv)?;
    let bounds = Bounds::of(&Segments::from_lengths([qkv.rows]))?;
    let device = storage.device();
    let name = format!("biased_attention_{head_width}");
    let kernel = attention::KERNELS.get(device, &name)?;
    // As without a bias, and the bias of a head.
    let shared = attention::shared_bytes(head_width) + 2 * qkv.rows * size_of::<f32>();
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, number(shared)?).w()?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(qkv.rows * part) }?;
    let (bias_stride, heads_argument, out_stride) = (number(2 * qkv.rows)?, number(heads)?, number(part)?);
    with_values::<f32, _>(bias, |bias| {
        let mut launch = kernel.builder();
        launch.arg(&qkv.values).arg(&mut out).arg(&bias).arg(&bias_stride).arg(&bounds);
        launch.arg(&heads_argument).arg(&out_stride).arg(&1.0_f32);
        // SAFETY: the arguments are those of attention.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(qkv.rows.div_ceil(attention::QUERIES), heads, shared as u32)) }.w()?;
        Ok(())
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((qkv.rows, part))))
}

/// [`crate::engine::ops::text::rms_norm`], for a contiguous `x`.
pub(in crate::engine::ops) fn rms_norm(
    x: (&CudaStorage, &Layout),
    scale: (&CudaStorage, &Layout),
    epsilon: f32,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let x = Matrix::new(x.0, x.1)?;
    let scale = values_of(scale)?;
    if x.stride != x.width || scale.len() != x.width {
        bail!("RMSNorm: {} scales for rows of {} values, {} apart", scale.len(), x.width, x.stride);
    }
    let kernel = KERNELS.get(device, "rms_norm")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let width = number(x.width)?;
    let mut launch = kernel.builder();
    launch.arg(&x.values).arg(&scale).arg(&mut out).arg(&width).arg(&epsilon);
    // SAFETY: the arguments are those of text.cu, and the sizes have been compared above. Each warp shares a sum.
    unsafe { launch.launch(grid(x.rows, 1, THREADS / 32 * 4)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}

/// [`crate::engine::ops::text::gated_gelu`], for a contiguous `x`.
pub(in crate::engine::ops) fn gated_gelu(storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let device = storage.device();
    let x = Matrix::new(storage, layout)?;
    let width = x.width / 2;
    if x.stride != x.width || 2 * width != x.width || !width.is_multiple_of(super::CHUNK) {
        bail!(
            "gated GELU: rows of {} values, {} apart, are not two halves in chunks of {}",
            x.width,
            x.stride,
            super::CHUNK
        );
    }
    let kernel = KERNELS.get(device, "gated_gelu")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * width) }?;
    let width_argument = number(width)?;
    let mut launch = kernel.builder();
    launch.arg(&x.values).arg(&mut out).arg(&width_argument);
    // SAFETY: the arguments are those of text.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(x.rows, 1, 0)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, width))))
}
