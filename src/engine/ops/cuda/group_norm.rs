//! Launches of the kernels in `kernels/group_norm.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, THREADS, grid, number, values_of};
use crate::engine::ops::group_norm::parts::parts_of;

const KERNELS: Kernels = Kernels::new("group_norm", include_bytes!(concat!(env!("OUT_DIR"), "/group_norm.fatbin")));

/// Maximum channels: a thread for each chunk of a pixel.
const CHANNELS_MAX: usize = THREADS as usize * CHUNK;

/// Whether the kernels take so many channels.
pub(in crate::engine::ops) fn takes_channels(channels: usize) -> bool {
    channels.is_multiple_of(CHUNK) && channels <= CHANNELS_MAX
}

/// Pixels that one thread of the last kernel normalizes.
const PIXELS_PER_THREAD: usize = 16;

/// [`crate::engine::ops::group_norm::GroupNorm`] of one contiguous image `[1, height, width, channels]`.
pub(in crate::engine::ops) fn group_norm(
    [x, weight, bias]: [(&CudaStorage, &Layout); 3],
    groups: usize,
    epsilon: f32,
    is_activated: bool,
) -> Result<(CudaStorage, Shape)> {
    let image = Image::of(x.1, groups)?;
    if [weight.1, bias.1].iter().any(|layout| layout.dims() != [image.channels]) {
        bail!("group norm: {:?} and {:?} for {} channels", weight.1.dims(), bias.1.dims(), image.channels);
    }
    let (device, out_shape) = (x.0.device(), x.1.shape().clone());
    let [x, weight, bias] = [values_of(x)?, values_of(weight)?, values_of(bias)?];
    let moments = image.moments(device, &x)?;
    // SAFETY: the kernel writes two numbers for every channel.
    let mut scales = unsafe { device.alloc::<f32>(2 * image.channels)? };
    let pixels = image.pixels as i64;
    let [channels, groups_argument, parts] = [number(image.channels)?, number(groups)?, number(image.parts())?];
    let kernel = KERNELS.get(device, "group_scales")?;
    let mut launch = kernel.builder();
    launch.arg(&moments).arg(&weight).arg(&bias).arg(&mut scales).arg(&pixels);
    launch.arg(&channels).arg(&groups_argument).arg(&parts).arg(&epsilon);
    // SAFETY: the arguments are those of group_norm.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(groups, 1, THREADS / 32 * 4)) }.w()?;
    let out = image.normalized(device, &x, &scales.slice(..), is_activated)?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), out_shape))
}

/// Statistics of one contiguous image `[1, height, width, channels]`: `[groups, parts, 2]`, f32.
pub(in crate::engine::ops) fn moments(x: (&CudaStorage, &Layout), groups: usize) -> Result<(CudaStorage, Shape)> {
    let image = Image::of(x.1, groups)?;
    let device = x.0.device();
    let moments = image.moments(device, &values_of(x)?)?;
    Ok((CudaStorage::wrap_cuda_slice(moments, device.clone()), Shape::from((groups, image.parts(), 2))))
}

/// One contiguous image `[1, height, width, channels]`, normalized by `scales [3, channels]` in f32, of which a factor and a summand
/// are read.
pub(in crate::engine::ops) fn normalize(
    x: (&CudaStorage, &Layout),
    (scales, scales_l): (&CudaStorage, &Layout),
    is_activated: bool,
) -> Result<(CudaStorage, Shape)> {
    let image = Image::of(x.1, 1)?;
    let (device, out_shape) = (x.0.device(), x.1.shape().clone());
    let scales = match scales_l.contiguous_offsets() {
        Some((start, end)) if scales_l.dims() == [3, image.channels] => {
            scales.as_cuda_slice::<f32>()?.slice(start..end)
        }
        _ => bail!("group norm: scales of {:?} for {} channels", scales_l.dims(), image.channels),
    };
    let out = image.normalized(device, &values_of(x)?, &scales, is_activated)?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), out_shape))
}

/// The sizes of one image whose channels are grouped.
#[derive(Clone, Copy)]
struct Image {
    pixels: usize,
    channels: usize,
    groups: usize,
}

impl Image {
    fn of(layout: &Layout, groups: usize) -> Result<Self> {
        let [1, height, width, channels] = *layout.dims() else {
            bail!("group norm: {:?} is not one image", layout.dims());
        };
        if !takes_channels(channels) || !channels.is_multiple_of(groups) {
            bail!("group norm: {channels} channels are not {groups} groups in chunks of {CHUNK}");
        }
        Ok(Self { pixels: height * width, channels, groups })
    }

    fn parts(self) -> usize {
        parts_of(self.pixels)
    }

    /// Mean and sum of squared differences of every part of every group.
    fn moments(self, device: &CudaDevice, x: &CudaView<bf16>) -> Result<CudaSlice<f32>> {
        // SAFETY: the kernel writes the moments of every part of every group.
        let mut moments = unsafe { device.alloc::<f32>(2 * self.groups * self.parts())? };
        let pixels = self.pixels as i64;
        let [channels, groups, parts] = [number(self.channels)?, number(self.groups)?, number(self.parts())?];
        let kernel = KERNELS.get(device, "group_moments")?;
        let mut launch = kernel.builder();
        launch.arg(x).arg(&mut moments).arg(&pixels).arg(&channels).arg(&groups).arg(&parts);
        // SAFETY: the arguments are those of group_norm.cu, and `x` has so many pixels of so many channels.
        unsafe { launch.launch(grid(self.parts(), 1, THREADS * 8 * 8)) }.w()?;
        Ok(moments)
    }

    /// `x` times the factor of its channel, plus the summand.
    fn normalized(
        self,
        device: &CudaDevice,
        x: &CudaView<bf16>,
        scales: &CudaView<f32>,
        is_activated: bool,
    ) -> Result<CudaSlice<bf16>> {
        // SAFETY: the kernel writes every value.
        let mut out = unsafe { device.alloc::<bf16>(self.pixels * self.channels)? };
        let block_pixels = THREADS as usize / (self.channels / CHUNK) * PIXELS_PER_THREAD;
        let (pixels, channels, is_activated) = (self.pixels as i64, number(self.channels)?, i32::from(is_activated));
        let kernel = KERNELS.get(device, "group_norm")?;
        let mut launch = kernel.builder();
        launch.arg(x).arg(scales).arg(&mut out).arg(&pixels).arg(&channels).arg(&is_activated);
        // SAFETY: as above; `scales` has two numbers for each channel.
        unsafe { launch.launch(grid(self.pixels.div_ceil(block_pixels), 1, 0)) }.w()?;
        Ok(out)
    }
}
