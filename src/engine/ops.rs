//! The operations of a denoising step that candle does not have. Each takes a packed token stream and is batch-invariant on
//! the CPU: the bits of a row do not depend on the other rows.
//!
//! On the CPU in f32 and on CUDA in bf16 each runs as a fused custom op. Elsewhere it runs as a composition of candle's own
//! operations (`*_composed`), against which the tests compare the fused ones.
//!
//! Must not know models, or how weights are kept.

#![expect(clippy::inline_always, reason = "only what is inlined into `vectorized` is compiled for wide vectors")]

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod expand;
pub(crate) mod expanded_linear;
pub(crate) mod gemm;
pub(crate) mod group_norm;
pub(crate) mod kernel;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod matrix_product;
pub(crate) mod modulation;
pub(crate) mod quantize;
pub(crate) mod recording;
pub(crate) mod rope;
mod segments;
pub(crate) mod softmax;
pub(crate) mod text;
mod vector;
#[cfg(not(feature = "cuda"))]
mod without_cuda;

#[cfg(not(feature = "cuda"))]
use without_cuda as cuda;

use std::ops::Range;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

pub(super) use cuda::close_libraries;
use cuda::is_launchable;
pub(crate) use segments::{Places, Segments};
pub(super) use vector::vectorized;

/// Values of bf16 in 16 bytes, which the CUDA kernels read and write at a time.
const CHUNK: usize = 8;

/// Whether the fused CPU ops apply to this tensor.
fn is_on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Whether there are CUDA kernels for this tensor's device and dtype.
fn has_kernels(tensor: &Tensor) -> bool {
    cfg!(feature = "cuda") && tensor.device().is_cuda() && tensor.dtype() == DType::BF16
}

/// Whether the CUDA kernels apply to these tensors.
fn is_on_cuda(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| has_kernels(tensor) && cuda::is_aligned(tensor))
}

/// An uninitialized matrix, for operations that together write all of it. Dtype and device are those of `like`.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn unwritten(rows: usize, width: usize, like: &Tensor) -> Result<Tensor> {
    if is_on_cuda(&[like]) {
        return cuda::unwritten(rows, width, like.device());
    }
    Tensor::zeros((rows, width), like.dtype(), like.device())
}

/// An image `[1, channels, height, width]` as `[1, height, width, channels]`, contiguous, as the CUDA kernels have it. No copy
/// where an image comes from [`channels_first`].
pub(crate) fn channels_last(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 2, 3, 1))?.contiguous()
}

/// The inverse of [`channels_last`], without a copy: the same memory under other strides.
pub(crate) fn channels_first(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 3, 1, 2))
}

/// A copy of some rows of an image, in its memory order.
pub(crate) fn copied_rows(image: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    if image.is_contiguous() {
        return image.narrow(2, rows.start, rows.len())?.force_contiguous();
    }
    channels_first(&channels_last(image)?.narrow(1, rows.start, rows.len())?.force_contiguous()?)
}

/// Images of one width below each other, as one image in their memory order.
pub(crate) fn stacked(images: &[Tensor]) -> Result<Tensor> {
    if images.iter().all(Tensor::is_contiguous) {
        return Tensor::cat(images, 2);
    }
    let images = images.iter().map(channels_last).collect::<Result<Vec<_>>>()?;
    channels_first(&Tensor::cat(&images, 1)?)
}

/// The values of a contiguous f32 operand on the CPU.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous operand, found strides {:?}", layout.stride()),
    }
}

/// A matrix whose rows are contiguous, but may be apart: a narrow slice of a wider one.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    count: usize,
    width: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (count, width) = layout.shape().dims2()?;
        let strides = layout.stride();
        if width > 1 && strides[1] != 1 {
            bail!("expected contiguous rows, found strides {strides:?}");
        }
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        Ok(Self { values, count, width, stride: strides[0] })
    }

    fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..self.width]
    }
}
