//! Launches of the kernels in `kernels/group_norm.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, Layout, Result, Shape, bail};
use half::bf16;

use super::{CHUNK, THREADS, grid, number};

const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/group_norm.ptx"));

/// The name under which a device keeps them once they are loaded.
const MODULE: &str = "fluxserve-group-norm";

/// What the channels of a picture are shared out to.
#[derive(Clone, Copy)]
pub(in crate::engine::ops) struct GroupNormShape {
    pub(in crate::engine::ops) channels: usize,
    pub(in crate::engine::ops) groups: usize,
}

/// Blocks that take the moments of one group, and chunks that a block of the second kernel writes.
const GROUP_PARTS: usize = 64;
const BLOCK_CHUNKS: usize = 4 * THREADS as usize;

/// [`crate::engine::ops::group_norm::GroupNorm`] of one contiguous picture whose channels are whole chunks.
pub(in crate::engine::ops) fn group_norm(
    [x, weight, bias]: [(&CudaStorage, &Layout); 3],
    shape: GroupNormShape,
    epsilon: f32,
    is_activated: bool,
) -> Result<(CudaStorage, Shape)> {
    let GroupNormShape { channels, groups } = shape;
    let device = x.0.device();
    let values = |(storage, layout): (&'_ CudaStorage, &Layout)| match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => bail!("group norm: {:?} of {:?} is not contiguous", layout.stride(), storage.dtype()),
    };
    let [(start, end), (weight_start, weight_end), (bias_start, bias_end)] =
        [values(x)?, values(weight)?, values(bias)?];
    let count = end - start;
    let channel_chunks = count / channels / CHUNK;
    let is_whole = count == channels * channel_chunks * CHUNK && start.is_multiple_of(CHUNK);
    if !is_whole || [weight_end - weight_start, bias_end - bias_start] != [channels; 2] {
        bail!("group norm: {count} values, {channels} channels: not in chunks of {CHUNK}, or other weights");
    }
    let pixels = x.0.as_cuda_slice::<bf16>()?.slice(start..end);
    let weight = weight.0.as_cuda_slice::<bf16>()?.slice(weight_start..weight_end);
    let bias = bias.0.as_cuda_slice::<bf16>()?.slice(bias_start..bias_end);
    // SAFETY: the first kernel writes the moments of every part of every group, the second every value.
    let (mut moments, mut out) =
        unsafe { (device.alloc::<f32>(2 * groups * GROUP_PARTS)?, device.alloc::<bf16>(count)?) };
    let group_channels = channels / groups;
    let shared = THREADS / 32 * 4;

    let kernel = device.get_or_load_custom_func("group_moments", MODULE, KERNELS)?;
    let group_chunks = (channel_chunks * group_channels) as i64;
    let mut launch = kernel.builder();
    launch.arg(&pixels).arg(&mut moments).arg(&group_chunks);
    // SAFETY: the arguments are those of group_norm.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(GROUP_PARTS, groups, shared)) }.w()?;

    let kernel = device.get_or_load_custom_func("group_norm", MODULE, KERNELS)?;
    let (chunks, group_channels, is_activated) =
        (channel_chunks as i64, number(group_channels)?, i32::from(is_activated));
    let mut launch = kernel.builder();
    launch.arg(&pixels).arg(&moments).arg(&weight).arg(&bias).arg(&mut out);
    launch.arg(&chunks).arg(&group_channels).arg(&epsilon).arg(&is_activated);
    // SAFETY: as above.
    unsafe { launch.launch(grid(channel_chunks.div_ceil(BLOCK_CHUNKS), channels, shared)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), x.1.shape().clone()))
}
