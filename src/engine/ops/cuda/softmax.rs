//! Launches of the kernel in `kernels/softmax.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, Layout, Result, Shape, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, THREADS, grid, number, values_of};

const KERNELS: Kernels = Kernels::new("softmax", include_bytes!(concat!(env!("OUT_DIR"), "/softmax.fatbin")));

/// [`crate::engine::ops::softmax::softmax`], of contiguous rows that are multiples of a chunk.
pub(in crate::engine::ops) fn softmax(x: &CudaStorage, layout: &Layout, scale: f32) -> Result<(CudaStorage, Shape)> {
    let count = layout.shape().elem_count();
    let width = layout.dims()[layout.dims().len() - 1];
    if width == 0 || !width.is_multiple_of(CHUNK) {
        bail!("softmax: rows of {width} are not in chunks of {CHUNK}");
    }
    let device = x.device();
    let scores = values_of((x, layout))?;
    let kernel = KERNELS.get(device, "softmax")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(count) }?;
    // Weights are powers of two.
    let (chunks, factor) = (number(width / CHUNK)?, scale * std::f32::consts::LOG2_E);
    let mut launch = kernel.builder();
    launch.arg(&scores).arg(&mut out).arg(&chunks).arg(&factor);
    // SAFETY: the arguments are those of softmax.cu. Each warp shares one number.
    unsafe { launch.launch(grid(count / width, 1, THREADS / 32 * 4)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
}
