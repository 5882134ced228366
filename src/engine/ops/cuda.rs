//! Launches of the kernels in `engine/kernels`: from candle's storage to candle's storage, one function for each kernel.
//!
//! All kernels read and write bf16, 16 bytes at a time, so widths, strides and starts are multiples of eight values
//! ([`is_aligned`]). Outputs are contiguous.

#![expect(unsafe_code, reason = "kernels take structs by value")]

pub(super) mod attention;
pub(super) mod convolution;
mod cublaslt;
pub(super) mod expand;
pub(super) mod graph;
pub(super) mod group_norm;
pub(super) mod linear;
pub(super) mod low_rank;
mod modules;
pub(super) mod quantize;
pub(super) mod rows;
mod scale;
pub(super) mod softmax;
pub(super) mod text;

use candle_core::cuda_backend::cudarc::driver::{
    CudaView, CudaViewMut, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg as _,
};
use candle_core::{CudaStorage, DType, Device, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::CHUNK;
use super::segments::Segments;
use modules::Kernels;

/// A null pointer, as a kernel's argument.
const NULL: u64 = 0;

/// Maximum sequences in one launch; `SEQUENCES_MAX` in device.cuh.
const SEQUENCES_MAX: usize = 64;

/// Threads of every block.
const THREADS: u32 = 256;

/// `Bounds` in device.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
struct Bounds {
    count: i32,
    at: [i32; SEQUENCES_MAX + 1],
}

// SAFETY: plain numbers, laid out as the kernels' own struct.
unsafe impl DeviceRepr for Bounds {}

impl Bounds {
    fn of(segments: &Segments) -> Result<Self> {
        if segments.count() > SEQUENCES_MAX {
            bail!("{} sequences in one launch, of at most {SEQUENCES_MAX}", segments.count());
        }
        let mut bounds = Self { count: segments.count() as i32, at: [0; SEQUENCES_MAX + 1] };
        for (at, range) in bounds.at[1..].iter_mut().zip(segments.ranges()) {
            *at = number(range.end)?;
        }
        Ok(bounds)
    }

    /// Of sequences that are apart, only where each begins.
    fn at(starts: &[usize]) -> Result<Self> {
        if starts.len() > SEQUENCES_MAX {
            bail!("{} sequences in one launch, of at most {SEQUENCES_MAX}", starts.len());
        }
        let mut bounds = Self { count: starts.len() as i32, at: [0; SEQUENCES_MAX + 1] };
        for (at, &start) in bounds.at.iter_mut().zip(starts) {
            *at = number(start)?;
        }
        Ok(bounds)
    }
}

/// Whether the kernels take a stream of so many sequences.
pub(super) fn is_launchable(segments: &Segments) -> bool {
    segments.count() <= SEQUENCES_MAX
}

/// Whether the kernels can read a tensor in place: its rows are complete chunks and begin on chunks.
pub(super) fn is_aligned(tensor: &Tensor) -> bool {
    let layout = tensor.layout();
    let [.., stride, 1] = *layout.stride() else {
        return layout.stride() == [1] && layout.start_offset().is_multiple_of(CHUNK);
    };
    let width = layout.dims()[layout.dims().len() - 1];
    [width, stride, layout.start_offset()].into_iter().all(|count| count.is_multiple_of(CHUNK))
}

/// A matrix on the device whose rows may be apart.
struct Matrix<'a> {
    values: CudaView<'a, bf16>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Matrix<'a> {
    fn new(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let (rows, width, stride) = rows_of(layout)?;
        Ok(Self { values: storage.as_cuda_slice::<bf16>()?.slice(layout.start_offset()..), rows, width, stride })
    }
}

/// A matrix on the device that is written; it may be part of a wider one.
struct MatrixMut<'a> {
    values: CudaViewMut<'a, bf16>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    fn new(storage: &'a mut CudaStorage, layout: &Layout) -> Result<Self> {
        let (rows, width, stride) = rows_of(layout)?;
        let values = storage.as_cuda_slice_mut::<bf16>()?.slice_mut(layout.start_offset()..);
        Ok(Self { values, rows, width, stride })
    }
}

/// Rows, width and stride, which must be multiples of a chunk.
fn rows_of(layout: &Layout) -> Result<(usize, usize, usize)> {
    let (rows, width) = layout.shape().dims2()?;
    let [stride, 1] = *layout.stride() else { bail!("expected contiguous rows, found {:?}", layout.stride()) };
    let start = layout.start_offset();
    if [start, width, stride].into_iter().any(|count| !count.is_multiple_of(CHUNK)) {
        bail!("rows of {width} values, {stride} apart from {start} on, are not in chunks of {CHUNK}");
    }
    Ok((rows, width, stride))
}

/// An uninitialized matrix, for operations that write all of it.
pub(super) fn unwritten(rows: usize, width: usize, device: &Device) -> Result<Tensor> {
    // SAFETY: every bit pattern is valid in bf16, and callers write the matrix before they read it.
    unsafe { Tensor::empty((rows, width), DType::BF16, device) }
}

/// The values of a contiguous operand that begins on a chunk.
fn values_of<'a>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<CudaView<'a, bf16>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if start.is_multiple_of(CHUNK) => Ok(storage.as_cuda_slice::<bf16>()?.slice(start..end)),
        _ => bail!("expected a contiguous operand on a boundary of {CHUNK} values, found {layout:?}"),
    }
}

/// Calls `body` with a contiguous tensor's values on the device.
fn with_values<T: candle_core::cuda_backend::CudaDType, R>(
    tensor: &Tensor,
    body: impl FnOnce(CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on a CUDA device");
    };
    body(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Calls `body` with the bias of `width` columns, or `None`.
fn with_bias<R>(
    bias: Option<&Tensor>,
    width: usize,
    body: impl FnOnce(Option<CudaView<bf16>>) -> Result<R>,
) -> Result<R> {
    match bias {
        None => body(None),
        Some(bias) if bias.dims() != [width] => bail!("a bias of {:?} for {width} columns", bias.dims()),
        Some(bias) => with_values(bias, |bias| body(Some(bias))),
    }
}

/// Pushes a pointer to the values, or a null pointer.
fn push_or_null<'a, 'b: 'a, 'c: 'b, T>(launch: &mut LaunchArgs<'a>, values: Option<&'b CudaView<'c, T>>) {
    match values {
        Some(values) => launch.arg(values),
        None => launch.arg(&NULL),
    };
}

/// Whether the program has the kernels for warpgroups, and the device has what they need.
fn has_warpgroups(device: &Device, kernels: &Kernels) -> bool {
    kernels.are_built() && capability(device) == Some((9, 0))
}

/// The compute capability of a device, if the driver reports it.
pub(super) fn capability(device: &Device) -> Option<(i32, i32)> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().compute_capability().ok()
}

/// Closes what this thread has opened on a device: it would keep the driver's context alive.
pub(in crate::engine) fn close_libraries(device: &Device) {
    if let Device::Cuda(device) = device {
        cublaslt::close(&device.cuda_stream());
        modules::close(device);
    }
}

/// An argument of a kernel, which counts in 32 bits.
fn number(count: usize) -> Result<i32> {
    i32::try_from(count).map_err(candle_core::Error::wrap)
}

fn grid(blocks: usize, heads: usize, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks as u32, heads as u32, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes }
}
