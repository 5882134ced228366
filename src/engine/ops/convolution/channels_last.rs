//! Convolutions of an image with its channels last: by the CUDA kernels, and on the CPU for comparison.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::super::kernel::Kernel;
use super::super::linear::linear;
use super::super::{channels_first, channels_last, contiguous};
use super::sizes::Sizes;

/// Channels in a chunk.
const CHUNK: usize = 8;

/// A convolution's weights in the kernel's form.
pub(super) struct ChannelsLast {
    kind: Kind,
    /// Outputs without the padding to a multiple of a chunk, which is zero.
    outputs: usize,
    /// Inputs that are added to make a multiple of a chunk: zeros, with weights of zero.
    inputs_added: usize,
}

enum Kind {
    /// 3×3, or the four 2×2 ones of an image of doubled sides: `weight [kinds, outputs, taps, inputs]`, `bias [outputs]`.
    Kernel { weight: Tensor, bias: Tensor, is_doubled: bool, kernel: Kernel },
    /// 1×1, which is a linear layer: `weight [outputs, inputs]`, `bias [outputs]`.
    Pointwise { weight: Tensor, bias: Tensor },
}

impl ChannelsLast {
    /// From `weight [outputs, inputs, side, side]`, with a side of 1 or 3, and `bias [outputs]`, by one of the device's kernels.
    pub(super) fn new(kernel: Kernel, weight: &Tensor, bias: &Tensor, is_doubled: bool) -> Result<Self> {
        let (outputs, inputs, side, _) = weight.dims4()?;
        if side == 1 {
            let kind = Kind::Pointwise { weight: weight.reshape((outputs, inputs))?, bias: bias.clone() };
            return Ok(Self { kind, outputs, inputs_added: 0 });
        }
        let inputs_added = inputs.next_multiple_of(CHUNK) - inputs;
        let weight = &weight.pad_with_zeros(1, 0, inputs_added)?;
        let weight = if is_doubled { doubled(weight)? } else { taps_of(weight)?.unsqueeze(0)? };
        let missing = outputs.next_multiple_of(CHUNK) - outputs;
        let weight = weight.pad_with_zeros(1, 0, missing)?.contiguous()?;
        let bias = bias.pad_with_zeros(0, 0, missing)?.contiguous()?;
        Ok(Self { kind: Kind::Kernel { weight, bias, is_doubled, kernel }, outputs, inputs_added })
    }

    /// `[1, inputs, height, width]` -> `[1, outputs, height, width]`, or of doubled sides; plus `residual`, which has the
    /// result's shape. No copy if the operands are results of this.
    pub(super) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let mut x = channels_last(x)?;
        if self.inputs_added > 0 {
            x = x.pad_with_zeros(3, 0, self.inputs_added)?;
        }
        let residual = residual.map(channels_last).transpose()?;
        let (_, height, width, inputs) = x.dims4()?;
        let (out, rest) = match &self.kind {
            Kind::Kernel { weight, bias, is_doubled, kernel } => {
                let (fused, rest) = if bias.dim(0)? == self.outputs { (residual, None) } else { (None, residual) };
                let op = Op { kernel: *kernel, residual: fused, is_doubled: *is_doubled };
                (x.apply_op3_no_bwd(weight, bias, &op)?.narrow(3, 0, self.outputs)?, rest)
            }
            Kind::Pointwise { weight, bias } => {
                let out = linear(&x.reshape((height * width, inputs))?, weight, Some(bias))?;
                (out.reshape((1, height, width, self.outputs))?, residual)
            }
        };
        channels_first(&match rest {
            Some(rest) => (out + rest)?,
            None => out,
        })
    }
}

impl ChannelsLast {
    /// [`Self::forward`] for some rows of `x`, whose other rows only border them; for twice as many of an image of doubled sides. The
    /// kernels take complete images, so the other rows are computed as well, and dropped.
    pub(super) fn forward_rows(&self, x: &Tensor, rows: &Range<usize>, residual: Option<&Tensor>) -> Result<Tensor> {
        let height = x.dim(2)?;
        if rows.len() == height {
            return self.forward(x, residual);
        }
        let is_doubled = matches!(self.kind, Kind::Kernel { is_doubled: true, .. });
        let scale = 1 + usize::from(is_doubled);
        let (above, below) = (scale * rows.start, scale * (height - rows.end));
        let residual =
            residual.map(|residual| channels_first(&channels_last(residual)?.pad_with_zeros(1, above, below)?));
        let out = channels_last(&self.forward(x, residual.transpose()?.as_ref())?)?;
        // A copy, so that it does not keep the other rows.
        channels_first(&out.narrow(1, above, scale * rows.len())?.force_contiguous()?)
    }
}

/// `[outputs, inputs, rows, columns]` -> `[outputs, taps, inputs]`
fn taps_of(weight: &Tensor) -> Result<Tensor> {
    weight.permute((0, 2, 3, 1))?.contiguous()?.flatten(1, 2)
}

/// A convolution of an image of doubled sides as four convolutions of the small image, one for the pixels of even or odd rows
/// and columns: `[4, outputs, 4, inputs]`. Sums of weights are taken in f32.
fn doubled(weight: &Tensor) -> Result<Tensor> {
    let nine = weight.to_dtype(DType::F32)?;
    // Of an even row's three neighbors the first is the previous small row, the other two its own; of an odd row's the first
    // two are its own, the last is the next small row. The same holds for columns.
    let halves = |weight: &Tensor, along: usize, is_odd: bool| {
        let sum = |first, count| weight.narrow(along, first, count)?.sum_keepdim(along);
        let border = if is_odd { 2 } else { 1 };
        Tensor::cat(&[sum(0, border)?, sum(border, 3 - border)?], along)
    };
    let kinds = [(false, false), (false, true), (true, false), (true, true)];
    let kinds = kinds.map(|(row, column)| taps_of(&halves(&halves(&nine, 2, row)?, 3, column)?));
    Tensor::stack(&kinds.into_iter().collect::<Result<Vec<_>>>()?, 0)?.to_dtype(weight.dtype())
}

/// On `x [1, height, width, inputs]`, with weights as in [`Kind::Kernel`].
struct Op {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU has no choice"))]
    kernel: Kernel,
    residual: Option<Tensor>,
    is_doubled: bool,
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "convolution-channels-last"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(xl, weight_l, bias_l, self.is_doubled)?;
        let Sizes { height, width, inputs, outputs, .. } = sizes;
        let (x, weight, bias) = (contiguous(x, xl)?, contiguous(weight, weight_l)?, contiguous(bias, bias_l)?);
        let shape = sizes.out_shape();
        let mut out = match &self.residual {
            Some(residual) if residual.shape() == &shape => residual.flatten_all()?.to_vec1::<f32>()?,
            Some(residual) => bail!("convolution: {:?} on {shape:?}", residual.dims()),
            None => vec![0.0; shape.elem_count()],
        };
        let (scale, side) = (sizes.scale(), if self.is_doubled { 2 } else { 3 });
        let taps = side * side;
        out.par_chunks_mut((scale * width * outputs).max(1)).enumerate().for_each(|(row, pixels)| {
            for (column, pixel) in pixels.chunks_exact_mut(outputs).enumerate() {
                let kind = row % scale * 2 + column % scale;
                for (output, value) in pixel.iter_mut().enumerate() {
                    let mut sum = bias[output];
                    for tap in 0..taps {
                        // The first tap is above and left, except in odd rows and columns of doubled sides.
                        let from = |at: usize, tap: usize| (at / scale + at % scale + tap).checked_sub(1);
                        let (Some(y), Some(x_at)) = (from(row, tap / side), from(column, tap % side)) else { continue };
                        if y < height && x_at < width {
                            let seen = &x[(y * width + x_at) * inputs..][..inputs];
                            let weights = &weight[((kind * outputs + output) * taps + tap) * inputs..][..inputs];
                            sum += seen.iter().zip(weights).map(|(a, b)| a * b).sum::<f32>();
                        }
                    }
                    *value += sum;
                }
            }
        });
        Ok((CpuStorage::F32(out), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        weight_l: &Layout,
        bias: &CudaStorage,
        bias_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = Sizes::of(xl, weight_l, bias_l, self.is_doubled)?;
        let operands = [(x, xl), (weight, weight_l), (bias, bias_l)];
        super::super::cuda::convolution::convolution(self.kernel, operands, self.residual.as_ref(), sizes)
    }
}
