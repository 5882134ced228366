//! Launches of the kernels in `kernels/attention.cu` and `kernels/attention_hopper.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, CudaStorage, Device, Layout, Result, Shape, bail};
use half::bf16;

use super::modules::Kernels;
use super::{Bounds, Matrix, MatrixMut, THREADS, grid, number};
use crate::engine::ops::kernel::{Kernel, do_two_fit};
use crate::engine::ops::segments::Segments;

pub(super) const KERNELS: Kernels =
    Kernels::new("attention", include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")));
const HOPPER_KERNELS: Kernels =
    Kernels::new("attention_hopper", include_bytes!(concat!(env!("OUT_DIR"), "/attention_hopper.fatbin")));

/// Queries of a block.
pub(super) const QUERIES: usize = 128;

/// Widths of a head that [`Kernel::Warp`] is compiled for.
pub(in crate::engine::ops) const HEAD_WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// The one that [`Kernel::Warpgroup`] is compiled for, and its entry.
const HOPPER_HEAD_WIDTH: usize = 128;
const HOPPER_ENTRY: &str = "attention_hopper_128";
/// That of [`Kernel::OrderedWarpgroup`], which is launched in the same way.
const ORDERED_HOPPER_ENTRY: &str = "attention_hopper_ordered_128";

/// Bytes of shared memory of [`Kernel::Warpgroup`]: the queries, two tiles of keys and two of values, and the alignment to
/// 1024 bytes.
const HOPPER_SHARED_BYTES: usize = 5 * 128 * HOPPER_HEAD_WIDTH * size_of::<bf16>() + 1024;

/// The head width for which [`Kernel::Warp`] has another form, of half as many threads: two of its blocks are to share a
/// multiprocessor.
const TALL_HEAD_WIDTH: usize = 128;
const TALL_THREADS: u32 = THREADS / 2;

/// Whether the device has [`Kernel::Warpgroup`].
pub(in crate::engine::ops) fn has_warpgroups(device: &Device) -> bool {
    super::has_warpgroups(device, &HOPPER_KERNELS)
}

/// Bytes that each thread of [`Kernel::Warpgroup`] spills from registers into memory. nvcc spills none, but leaves only seven
/// registers free: more with another version of it may not fit.
pub(in crate::engine::ops) fn spilled_bytes(device: &Device) -> Option<i32> {
    let Device::Cuda(device) = device else { return None };
    let kernel = HOPPER_KERNELS.get(device, HOPPER_ENTRY).ok()?;
    kernel.local_size_bytes().ok()
}

/// Bytes of shared memory of [`Kernel::Warp`]: two stages of 64 keys and 64 values.
pub(super) fn shared_bytes(head_width: usize) -> usize {
    2 * 2 * 64 * head_width * size_of::<bf16>()
}

/// One of the kernels' entries.
struct Entry {
    name: String,
    kernels: &'static Kernels,
    threads: u32,
    shared_bytes: usize,
}

impl Entry {
    /// For a device whose multiprocessors have so many bytes of shared memory.
    fn of(kernel: Kernel, head_width: usize, multiprocessor_bytes: usize) -> Self {
        if kernel != Kernel::Warp && head_width == HOPPER_HEAD_WIDTH {
            let is_ordered = kernel == Kernel::OrderedWarpgroup;
            return Self {
                name: if is_ordered { ORDERED_HOPPER_ENTRY } else { HOPPER_ENTRY }.to_owned(),
                kernels: &HOPPER_KERNELS,
                threads: THREADS,
                shared_bytes: HOPPER_SHARED_BYTES,
            };
        }
        let shared_bytes = shared_bytes(head_width);
        let is_tall = head_width == TALL_HEAD_WIDTH && do_two_fit(shared_bytes, multiprocessor_bytes);
        let (form, threads) = if is_tall { ("tall_", TALL_THREADS) } else { ("", THREADS) };
        Self { name: format!("attention_{form}{head_width}"), kernels: &KERNELS, threads, shared_bytes }
    }
}

/// Bytes of shared memory of one multiprocessor.
fn multiprocessor_bytes(device: &CudaDevice) -> Result<usize> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR;
    Ok(device.cuda_stream().context().attribute(attribute).w()?.try_into().unwrap_or(0))
}

/// Checks that a row's bytes can be counted in 32 bits, as the kernels do.
pub(super) fn check_row(qkv: &Matrix) -> Result<()> {
    number(qkv.stride * size_of::<bf16>()).map(drop)
}

/// [`crate::engine::ops::attention::attention`], for a contiguous `qkv` and a head width of [`HEAD_WIDTHS`].
pub(in crate::engine::ops) fn attention(
    kernel: Kernel,
    storage: &CudaStorage,
    layout: &Layout,
    heads: usize,
    segments: &Segments,
) -> Result<(CudaStorage, Shape)> {
    let (rows, width) = layout.shape().dims2()?;
    let device = storage.device();
    // SAFETY: the kernel writes every row of every sequence, which are all rows.
    let out = unsafe { device.alloc::<bf16>(rows * width / 3) }?;
    let (mut out, shape) = (CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((rows, width / 3)));
    attention_into(kernel, (&mut out, &Layout::contiguous(&shape)), (storage, layout), heads, segments)?;
    Ok((out, shape))
}

/// The same into an existing matrix, whose rows may be apart.
pub(in crate::engine::ops) fn attention_into(
    kernel: Kernel,
    (out, out_layout): (&mut CudaStorage, &Layout),
    (storage, layout): (&CudaStorage, &Layout),
    heads: usize,
    segments: &Segments,
) -> Result<()> {
    let (qkv, mut out) = (Matrix::new(storage, layout)?, MatrixMut::new(out, out_layout)?);
    let part = qkv.width / 3;
    let head_width = part / heads;
    let fits = qkv.stride == qkv.width && 3 * heads * head_width == qkv.width && qkv.rows == segments.rows();
    if !fits || !HEAD_WIDTHS.contains(&head_width) {
        bail!("attention: {}x{} is not {segments:?} of three parts of {heads} heads", qkv.rows, qkv.width);
    }
    if (out.rows, out.width) != (qkv.rows, part) {
        bail!("attention: {}x{} does not hold {}x{part}", out.rows, out.width, qkv.rows);
    }
    let bounds = Bounds::of(segments)?;
    let blocks = segments.ranges().map(|range| range.len().div_ceil(QUERIES)).sum();
    let device = storage.device();
    let entry = Entry::of(kernel, head_width, multiprocessor_bytes(device)?);
    let kernel = entry.kernels.get(device, &entry.name)?;
    // More than the default limit.
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, number(entry.shared_bytes)?).w()?;
    check_row(&qkv)?;
    let (heads_argument, out_stride, scale) = (number(heads)?, number(out.stride)?, 1.0 / (head_width as f32).sqrt());
    let mut launch = kernel.builder();
    launch.arg(&qkv.values).arg(&mut out.values).arg(&bounds).arg(&heads_argument).arg(&out_stride).arg(&scale);
    let config = grid(blocks, heads, entry.shared_bytes as u32);
    // SAFETY: the arguments are those of all these kernels, and the sizes have been compared above.
    unsafe { launch.launch(LaunchConfig { block_dim: (entry.threads, 1, 1), ..config }) }.w()?;
    Ok(())
}
