//! Launches of the kernels in `kernels/convolution.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::{CHUNK, NULL, grid, number, values_of};
use crate::engine::ops::convolution::Sizes;

const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/convolution.ptx"));

/// The name under which a device keeps them once they are loaded.
const MODULE: &str = "fluxserve-convolution";

/// Pixels at each side of a block's tile.
const TILE: usize = 16;

/// Channels of the input at a time, and how many rounds' weights are in shared memory.
const STEP: usize = 32;
const STAGES: usize = 4;

/// Outputs of a block, and of one where there are few.
const OUTPUTS: usize = 128;
const OUTPUTS_NARROW: usize = 16;

/// [`crate::engine::ops::convolution::ChannelsLast`], of one contiguous picture; and `residual`, which is as the result, added.
pub(in crate::engine::ops) fn convolution(
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
    let (name, taps_side, kinds, block_outputs) = match (is_doubled, outputs <= OUTPUTS_NARROW) {
        (true, _) => ("convolution_doubled", 2, 4, OUTPUTS),
        (false, false) => ("convolution", 3, 1, OUTPUTS),
        (false, true) => ("convolution_narrow", 3, 1, OUTPUTS_NARROW),
    };
    let kernel = device.get_or_load_custom_func(name, MODULE, KERNELS)?;
    let side = TILE + taps_side - 1;
    let shared = (2 * side * side * STEP + STAGES * block_outputs * STEP + block_outputs) * size_of::<bf16>();
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, number(shared)?).w()?;
    let shape = sizes.out_shape();
    // SAFETY: the kernel writes every channel of every pixel.
    let mut out = unsafe { device.alloc::<bf16>(shape.elem_count()) }?;
    let blocks = height.div_ceil(TILE) * width.div_ceil(TILE) * kinds * outputs.div_ceil(block_outputs);
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
    match &residual {
        Some(residual) => launch.arg(residual),
        None => launch.arg(&NULL),
    };
    launch.arg(&mut out).arg(&height).arg(&width).arg(&inputs).arg(&outputs);
    // SAFETY: the arguments are those of convolution.cu, and the sizes have been compared here and by `Sizes`.
    unsafe { launch.launch(grid(blocks, 1, shared as u32)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
}
