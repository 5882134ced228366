//! Launches of the kernels in `kernels/group_norm.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, Layout, Result, Shape, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, THREADS, grid, number, values_of};

const KERNELS: Kernels = Kernels::new("group_norm", include_bytes!(concat!(env!("OUT_DIR"), "/group_norm.fatbin")));

/// Maximum channels: a thread for each chunk of a pixel.
const CHANNELS_MAX: usize = THREADS as usize * CHUNK;

/// Whether the kernels take so many channels.
pub(in crate::engine::ops) fn takes_channels(channels: usize) -> bool {
    channels.is_multiple_of(CHUNK) && channels <= CHANNELS_MAX
}

/// How the channels of an image are grouped.
#[derive(Clone, Copy)]
pub(in crate::engine::ops) struct GroupNormShape {
    pub(in crate::engine::ops) channels: usize,
    pub(in crate::engine::ops) groups: usize,
}

/// Maximum parts, each with a block for its statistics: eight blocks for each multiprocessor of an H200.
const PARTS_MAX: usize = 1056;

/// Fewest pixels of a part.
const PART_PIXELS_MIN: usize = 64;

/// Pixels that one thread of the last kernel normalizes.
const PIXELS_PER_THREAD: usize = 16;

/// [`crate::engine::ops::group_norm::GroupNorm`] of one contiguous image, channels last.
pub(in crate::engine::ops) fn group_norm(
    [x, weight, bias]: [(&CudaStorage, &Layout); 3],
    shape: GroupNormShape,
    epsilon: f32,
    is_activated: bool,
) -> Result<(CudaStorage, Shape)> {
    let GroupNormShape { channels, groups } = shape;
    let (device, out_shape) = (x.0.device(), x.1.shape().clone());
    let count = out_shape.elem_count();
    let pixels = count / channels;
    let fits = takes_channels(channels) && count == pixels * channels;
    if !fits || [weight.1, bias.1].iter().any(|layout| layout.dims() != [channels]) {
        bail!("group norm: {out_shape:?} of {channels} channels is not in chunks of {CHUNK}, or has other weights");
    }
    let [x, weight, bias] = [values_of(x)?, values_of(weight)?, values_of(bias)?];
    let parts = (pixels / PART_PIXELS_MIN).clamp(1, PARTS_MAX);
    // SAFETY: the first kernel writes the moments of every part of every group, the second two numbers for every channel, the
    // third every value.
    let (mut moments, mut scales, mut out) = unsafe {
        (device.alloc::<f32>(2 * groups * parts)?, device.alloc::<f32>(2 * channels)?, device.alloc::<bf16>(count)?)
    };
    let block_pixels = THREADS as usize / (channels / CHUNK) * PIXELS_PER_THREAD;
    let blocks = pixels.div_ceil(block_pixels);
    let pixels = pixels as i64;
    let [channels, groups_argument, parts_argument] = [number(channels)?, number(groups)?, number(parts)?];

    let kernel = KERNELS.get(device, "group_moments")?;
    let mut launch = kernel.builder();
    launch.arg(&x).arg(&mut moments).arg(&pixels).arg(&channels).arg(&groups_argument).arg(&parts_argument);
    // SAFETY: the arguments are those of group_norm.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(parts, 1, THREADS * 8 * 8)) }.w()?;

    let kernel = KERNELS.get(device, "group_scales")?;
    let mut launch = kernel.builder();
    launch.arg(&moments).arg(&weight).arg(&bias).arg(&mut scales).arg(&pixels);
    launch.arg(&channels).arg(&groups_argument).arg(&parts_argument).arg(&epsilon);
    // SAFETY: as above.
    unsafe { launch.launch(grid(groups, 1, THREADS / 32 * 4)) }.w()?;

    let kernel = KERNELS.get(device, "group_norm")?;
    let is_activated = i32::from(is_activated);
    let mut launch = kernel.builder();
    launch.arg(&x).arg(&scales).arg(&mut out).arg(&pixels).arg(&channels).arg(&is_activated);
    // SAFETY: as above.
    unsafe { launch.launch(grid(blocks, 1, 0)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), out_shape))
}
