//! The operations a denoising step is made of, beyond what candle offers: each picks its own way through the packed
//! token stream and gives every row the same bits whatever other rows are in the stream.
//!
//! On the CPU in f32 and on CUDA in bf16 each runs as a fused custom op. Elsewhere it runs as a composition of candle's own
//! operations (`*_composed`), which is also the twin that the tests hold the fused ones to.

#![expect(clippy::inline_always, reason = "only what is inlined into `vectorized` is compiled for wide vectors")]

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod gemm;
pub(crate) mod group_norm;
pub(crate) mod kernel;
pub(crate) mod linear;
pub(crate) mod modulation;
pub(crate) mod quantize;
pub(crate) mod rope;
pub(crate) mod softmax;
pub(crate) mod text;
mod vector;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

/// How a packed stream is cut into sequences: `bounds[i]..bounds[i + 1]` are the rows of sequence `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments {
    bounds: Vec<usize>,
}

impl Segments {
    /// From the length of each sequence, in stream order.
    pub(crate) fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut bounds = vec![0];
        for length in lengths {
            bounds.push(bounds[bounds.len() - 1] + length);
        }
        Self { bounds }
    }

    /// How many sequences there are.
    pub(crate) fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Rows in all.
    pub(crate) fn rows(&self) -> usize {
        self.bounds[self.count()]
    }

    /// The rows of one sequence.
    pub(crate) fn range(&self, sequence: usize) -> std::ops::Range<usize> {
        self.bounds[sequence]..self.bounds[sequence + 1]
    }

    /// The rows of every sequence, in stream order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.bounds.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// Where the sequences of a stream stand in another one, each in one piece.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    sources: Segments,
    starts: Vec<usize>,
}

impl Places {
    /// `starts` are the first rows in the other stream, one for each sequence.
    pub(crate) fn new(sources: &Segments, starts: impl IntoIterator<Item = usize>) -> Self {
        let places = Self { sources: sources.clone(), starts: starts.into_iter().collect() };
        assert_eq!(places.starts.len(), sources.count(), "a place for each sequence");
        places
    }

    /// The rows of every sequence, and the first of those in the other stream.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + '_ {
        self.sources.ranges().zip(self.starts.iter().copied())
    }
}

/// Whether the fused CPU ops apply to this tensor.
fn is_on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Whether there are CUDA kernels for what stands where this tensor does, in its dtype.
fn has_kernels(tensor: &Tensor) -> bool {
    cfg!(feature = "cuda") && tensor.device().is_cuda() && tensor.dtype() == DType::BF16
}

/// Whether the CUDA kernels apply to these tensors.
#[cfg(feature = "cuda")]
fn is_on_cuda(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| has_kernels(tensor) && cuda::is_aligned(tensor))
}

#[cfg(not(feature = "cuda"))]
fn is_on_cuda(_: &[&Tensor]) -> bool {
    false
}

/// A matrix for operations that write into parts of it, and together into all of it. Dtype and device are those of `like`.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn unwritten(rows: usize, width: usize, like: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if is_on_cuda(&[like]) {
        return cuda::unwritten(rows, width, like.device());
    }
    Tensor::zeros((rows, width), like.dtype(), like.device())
}

/// Whether the CUDA kernels take a stream of so many sequences.
#[cfg(feature = "cuda")]
fn is_launchable(segments: &Segments) -> bool {
    segments.count() <= cuda::SEQUENCES_MAX
}

#[cfg(not(feature = "cuda"))]
fn is_launchable(_: &Segments) -> bool {
    false
}

/// An image `[1, channels, height, width]` as `[1, height, width, channels]`, contiguous: each pixel's channels side by side, as
/// the CUDA kernels have them. Nothing moves where an image comes from [`channels_first`].
pub(crate) fn channels_last(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 2, 3, 1))?.contiguous()
}

/// The way back, in which nothing moves: the same memory under other strides.
pub(crate) fn channels_first(image: &Tensor) -> Result<Tensor> {
    image.permute((0, 3, 1, 2))
}

/// The values of a contiguous f32 operand on the CPU.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous operand, found strides {:?}", layout.stride()),
    }
}

/// A matrix whose rows are contiguous, but need not touch: a narrow slice of a wider one.
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
