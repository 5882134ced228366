//! GroupNorm over the channels of one image, and SiLU after it: the autoencoder has them before each convolution.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::{Module, VarBuilder};
use rayon::prelude::*;

use super::activation::{silu, silu_of};
use super::vector::{sum, sum_of_squares, vectorized};
use super::{channels_first, channels_last, contiguous, cuda, has_kernels, is_on_cpu};

/// Values that are summed in f32. The sums of a group's stretches, possibly thousands, are added in f64.
const STRETCH: usize = 4096;

/// GroupNorm with its weights. Statistics are f32 or better whatever the dtype.
pub(crate) struct GroupNorm {
    groups: usize,
    epsilon: f64,
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// `weight [channels]` and `bias [channels]`, in the builder's dtype.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(groups: usize, channels: usize, epsilon: f64, vb: &VarBuilder) -> Result<Self> {
        Ok(Self::new(groups, epsilon, vb.get(channels, "weight")?, vb.get(channels, "bias")?))
    }

    /// From `weight` and `bias`, `[channels]` each.
    pub(crate) fn new(groups: usize, epsilon: f64, weight: Tensor, bias: Tensor) -> Self {
        Self { groups, epsilon, weight, bias }
    }

    /// `[1, channels, height, width]` -> the same shape and dtype.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// The same, and SiLU of it.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    fn run(&self, x: &Tensor, is_activated: bool) -> Result<Tensor> {
        let op = Op { groups: self.groups, epsilon: self.epsilon as f32, is_activated, is_channels_last: false };
        if has_kernels(x) && cuda::group_norm::takes_channels(self.weight.dim(0)?) {
            return self.run_channels_last(x, op);
        }
        if x.is_contiguous() && is_on_cpu(x) {
            return x.apply_op3_no_bwd(&self.weight, &self.bias, &op);
        }
        self.composed(x, is_activated)
    }

    /// Channels last, as the kernels have them. No copy if `x` comes from a kernel.
    fn run_channels_last(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        let op = Op { is_channels_last: true, ..op };
        channels_first(&channels_last(x)?.apply_op3_no_bwd(&self.weight, &self.bias, &op)?)
    }

    fn composed(&self, x: &Tensor, is_activated: bool) -> Result<Tensor> {
        let channels = self.weight.dim(0)?;
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        let normed = candle_nn::GroupNorm::new(weight, bias, channels, self.groups, self.epsilon)?.forward(x)?;
        if is_activated { silu(&normed) } else { Ok(normed) }
    }
}

#[derive(Clone, Copy)]
struct Op {
    groups: usize,
    epsilon: f32,
    is_activated: bool,
    is_channels_last: bool,
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "group-norm"
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
        let (values, weight, bias) = (contiguous(x, xl)?, contiguous(weight, weight_l)?, contiguous(bias, bias_l)?);
        let channels = self.channels(xl)?;
        if [weight.len(), bias.len()] != [channels; 2] {
            bail!("group norm: {} weights and {} biases for {channels} channels", weight.len(), bias.len());
        }
        if self.is_channels_last {
            return Ok((CpuStorage::F32(self.by_pixels(values, weight, bias)), xl.shape().clone()));
        }
        let positions = values.len() / channels;
        let group_channels = channels / self.groups;
        let statistics: Vec<(f32, f32)> =
            values.par_chunks(group_channels * positions).map(|group| mean_and_scale(group, self.epsilon)).collect();
        let mut out = vec![0.0_f32; values.len()];
        out.par_chunks_mut(positions).zip(values.par_chunks(positions)).enumerate().for_each(
            |(channel, (out, values))| {
                let (mean, inverse) = statistics[channel / group_channels];
                let (weight, bias) = (weight[channel], bias[channel]);
                vectorized(|| {
                    for (out, &value) in out.iter_mut().zip(values) {
                        let normed = (value - mean) * inverse * weight + bias;
                        *out = if self.is_activated { silu_of(normed) } else { normed };
                    }
                });
            },
        );
        Ok((CpuStorage::F32(out), xl.shape().clone()))
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
        let shape = cuda::group_norm::GroupNormShape { channels: self.channels(xl)?, groups: self.groups };
        let operands = [(x, xl), (weight, weight_l), (bias, bias_l)];
        cuda::group_norm::group_norm(operands, shape, self.epsilon, self.is_activated)
    }
}

impl Op {
    /// The plainest way, for an image with its channels last, as the kernels have it.
    fn by_pixels(&self, values: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let channels = weight.len();
        let width = channels / self.groups;
        let of_group = |group: usize| {
            let pixels = values.chunks_exact(channels);
            pixels.flat_map(|pixel| &pixel[group * width..][..width]).copied().collect::<Vec<f32>>()
        };
        let statistics: Vec<(f32, f32)> =
            (0..self.groups).map(|group| mean_and_scale(&of_group(group), self.epsilon)).collect();
        let norm = |(at, value): (usize, &f32)| {
            let channel = at % channels;
            let (mean, inverse) = statistics[channel / width];
            let normed = (value - mean) * inverse * weight[channel] + bias[channel];
            if self.is_activated { silu_of(normed) } else { normed }
        };
        values.iter().enumerate().map(norm).collect()
    }

    /// Channels of the image, which must be one.
    fn channels(&self, layout: &Layout) -> Result<usize> {
        let channels = match *layout.dims() {
            [1, .., channels] if self.is_channels_last => Some(channels),
            [1, channels, ..] if !self.is_channels_last => Some(channels),
            _ => None,
        };
        match channels {
            Some(channels) if channels > 0 && channels.is_multiple_of(self.groups) => Ok(channels),
            _ => bail!("group norm: {:?} is not one image of {} groups of channels", layout.dims(), self.groups),
        }
    }
}

/// Mean and 1 / sqrt(variance + epsilon), the variance in a second pass over the differences.
fn mean_and_scale(values: &[f32], epsilon: f32) -> (f32, f32) {
    let count = values.len() as f64;
    let total: f64 = values.chunks(STRETCH).map(|values| f64::from(vectorized(|| sum(values)))).sum();
    let mean = (total / count) as f32;
    let mut differences = [0.0_f32; STRETCH];
    let squares = values.chunks(STRETCH).map(|values| {
        let differences = &mut differences[..values.len()];
        f64::from(vectorized(|| {
            for (difference, &value) in differences.iter_mut().zip(values) {
                *difference = value - mean;
            }
            sum_of_squares(differences)
        }))
    });
    let variance = squares.sum::<f64>() / count;
    (mean, (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn norm(groups: usize, channels: usize) -> GroupNorm {
        let random = |mean: f32| Tensor::randn(mean, 0.5, channels, &Device::Cpu).expect("randn");
        GroupNorm::new(groups, 1e-6, random(1.0), random(0.0))
    }

    #[test]
    fn the_fused_ops_equal_the_composed_one() {
        for (groups, channels, height, width, mean) in
            [(32, 64, 7, 5, 0.0_f32), (4, 12, 64, 96, 3.0), (1, 1, 1, 3, -2.0)]
        {
            let norm = norm(groups, channels);
            let x = Tensor::randn(mean, 2.0, (1, channels, height, width), &Device::Cpu).expect("randn");
            for is_activated in [false, true] {
                let fused = norm.run(&x, is_activated).expect("fused");
                let composed = norm.composed(&x, is_activated).expect("composed");
                let largest: f32 =
                    (fused - &composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
                assert!(largest < 1e-5, "{channels} channels in {groups}: {largest:e}");
                let op = Op { groups, epsilon: 1e-6, is_activated, is_channels_last: false };
                let last = norm.run_channels_last(&x, op).expect("channels last");
                let largest: f32 =
                    (last - &composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
                assert!(largest < 1e-5, "{channels} channels in {groups}, last: {largest:e}");
            }
        }
    }

    #[test]
    fn more_than_one_image_is_rejected() {
        let x = Tensor::zeros((2, 4, 8, 8), DType::F32, &Device::Cpu).expect("zeros");
        assert!(norm(2, 4).forward(&x).is_err());
    }
}
