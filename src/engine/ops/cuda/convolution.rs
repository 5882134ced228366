//! Launches of the kernels in `kernels/convolution.cu` and `kernels/convolution_hopper.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::{CudaStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, grid, number, push_or_null, values_of};
use crate::engine::ops::convolution::sizes::Sizes;
use crate::engine::ops::kernel::Kernel;

const KERNELS: Kernels = Kernels::new("convolution", include_bytes!(concat!(env!("OUT_DIR"), "/convolution.fatbin")));
const HOPPER_KERNELS: Kernels =
    Kernels::new("convolution_hopper", include_bytes!(concat!(env!("OUT_DIR"), "/convolution_hopper.fatbin")));

/// Pixels at each side of a block's tile.
const TILE: usize = 16;

/// Pipeline stages in shared memory: of weights, and of pixels.
const STAGES: usize = 4;
const STEPS: usize = 2;

/// Outputs of a block, and of one where the convolution has few.
const OUTPUTS: usize = 128;
const OUTPUTS_NARROW: usize = 16;

/// One of the kernels' entries.
struct Entry {
    name: &'static str,
    kernels: Kernels,
    /// Input channels at a time, outputs of a block, and bytes for alignment.
    step: usize,
    outputs: usize,
    alignment: usize,
}

const PLAIN: Entry = Entry { name: "convolution", kernels: KERNELS, step: 32, outputs: OUTPUTS, alignment: 0 };
const NARROW: Entry = Entry { name: "convolution_narrow", outputs: OUTPUTS_NARROW, ..PLAIN };
const DOUBLED: Entry = Entry { name: "convolution_doubled", ..PLAIN };
const HOPPER: Entry =
    Entry { name: "convolution_hopper", kernels: HOPPER_KERNELS, step: 64, outputs: OUTPUTS, alignment: 1024 };
const HOPPER_DOUBLED: Entry = Entry { name: "convolution_hopper_doubled", ..HOPPER };

impl Entry {
    fn of(kernel: Kernel, sizes: Sizes) -> Self {
        match (kernel, sizes.is_doubled) {
            (_, false) if sizes.outputs <= OUTPUTS_NARROW => NARROW,
            (Kernel::Warp, false) => PLAIN,
            (Kernel::Warp, true) => DOUBLED,
            (Kernel::Warpgroup | Kernel::OrderedWarpgroup, false) => HOPPER,
            (Kernel::Warpgroup | Kernel::OrderedWarpgroup, true) => HOPPER_DOUBLED,
        }
    }

    /// Of a kernel with so many taps at each side.
    fn shared_bytes(&self, taps_side: usize) -> usize {
        let side = TILE + taps_side - 1;
        let values = STEPS * side * side * self.step + STAGES * self.outputs * self.step + self.outputs;
        values * size_of::<bf16>() + self.alignment
    }
}

/// Whether the device has [`Kernel::Warpgroup`].
pub(in crate::engine::ops) fn has_warpgroups(device: &Device) -> bool {
    super::has_warpgroups(device, &HOPPER_KERNELS)
}

/// [`crate::engine::ops::convolution::ChannelsLast`], of one contiguous image; adds `residual`, which has the result's shape.
pub(in crate::engine::ops) fn convolution(
    kernel: Kernel,
    [x, weight, bias]: [(&CudaStorage, &Layout); 3],
    residual: Option<&Tensor>,
    sizes: Sizes,
) -> Result<(CudaStorage, Shape)> {
    let Sizes { height, width, inputs, outputs, is_doubled } = sizes;
    if ![inputs, outputs].iter().all(|channels| channels.is_multiple_of(CHUNK)) {
        bail!("convolution: {inputs} to {outputs} channels are not in chunks of {CHUNK}");
    }
    let device = x.0.device();
    let [x, weight, bias] = [values_of(x)?, values_of(weight)?, values_of(bias)?];
    let entry = Entry::of(kernel, sizes);
    let (taps_side, kinds) = if is_doubled { (2, 4) } else { (3, 1) };
    let kernel = entry.kernels.get(device, entry.name)?;
    let shared = entry.shared_bytes(taps_side);
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, number(shared)?).w()?;
    let shape = sizes.out_shape();
    // SAFETY: the kernel writes every channel of every pixel.
    let mut out = unsafe { device.alloc::<bf16>(shape.elem_count()) }?;
    let blocks = height.div_ceil(TILE) * width.div_ceil(TILE) * kinds * outputs.div_ceil(entry.outputs);
    // Pixels are counted in 32 bits; blocks are fewer.
    number(height * width * kinds)?;
    let held = residual.map(Tensor::storage_and_layout);
    let residual = match &held {
        None => None,
        Some((storage, layout)) => match &**storage {
            Storage::Cuda(storage) if layout.shape() == &shape => Some(values_of((storage, layout))?),
            _ => bail!("convolution: {:?} on {shape:?}, or on another device", layout.dims()),
        },
    };
    let [height, width, inputs, outputs] = [number(height)?, number(width)?, number(inputs)?, number(outputs)?];
    let mut launch = kernel.builder();
    launch.arg(&x).arg(&weight).arg(&bias);
    push_or_null(&mut launch, residual.as_ref());
    launch.arg(&mut out).arg(&height).arg(&width).arg(&inputs).arg(&outputs);
    // SAFETY: the arguments are those of all these kernels, and the sizes have been compared here and by `Sizes`.
    unsafe { launch.launch(grid(blocks, 1, shared as u32)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
}
