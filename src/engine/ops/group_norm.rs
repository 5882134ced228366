//! GroupNorm over the channels of one image, and SiLU after it: the autoencoder has them before each convolution. `strips.rs` has it
//! for an image in strips of rows.

pub(super) mod parts;
mod strips;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use candle_nn::{Module, VarBuilder};

use super::activation::{silu, silu_of};
use super::{channels_first, channels_last, contiguous, cuda, has_kernels, is_on_cpu};

pub(crate) use strips::Moments;

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
        if self.has_kernels(x) {
            return self.run_channels_last(x, is_activated);
        }
        if x.is_contiguous() && is_on_cpu(x) {
            return self.normalized(x, &self.scales(&[self.moments(x)?])?, is_activated);
        }
        self.composed(x, is_activated)
    }

    /// Whether the CUDA kernels take this image.
    fn has_kernels(&self, x: &Tensor) -> bool {
        has_kernels(x) && self.weight.dim(0).is_ok_and(cuda::group_norm::takes_channels)
    }

    /// Channels last, as the kernels have them. No copy if `x` comes from a kernel.
    fn run_channels_last(&self, x: &Tensor, is_activated: bool) -> Result<Tensor> {
        self.channels(x)?;
        let op = ChannelsLast { groups: self.groups, epsilon: self.epsilon, is_activated };
        channels_first(&channels_last(x)?.apply_op3_no_bwd(&self.weight, &self.bias, &op)?)
    }

    fn composed(&self, x: &Tensor, is_activated: bool) -> Result<Tensor> {
        let channels = self.weight.dim(0)?;
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        let normed = candle_nn::GroupNorm::new(weight, bias, channels, self.groups, self.epsilon)?.forward(x)?;
        if is_activated { silu(&normed) } else { Ok(normed) }
    }

    /// Channels of the image, which must be one.
    fn channels(&self, x: &Tensor) -> Result<usize> {
        let channels = self.weight.dim(0)?;
        let fits = matches!(*x.dims(), [1, found, _, _] if found == channels);
        if !fits || channels == 0 || !channels.is_multiple_of(self.groups) {
            bail!("group norm: {:?} is not one image of {channels} channels in {} groups", x.dims(), self.groups);
        }
        Ok(channels)
    }
}

/// The norm of an image `[1, height, width, channels]`.
#[derive(Clone, Copy)]
struct ChannelsLast {
    groups: usize,
    epsilon: f64,
    is_activated: bool,
}

impl CustomOp3 for ChannelsLast {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    /// The plainest way.
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
        let channels = weight.len();
        let width = channels / self.groups;
        let statistics: Vec<(f64, f64)> = (0..self.groups)
            .map(|group| {
                let pixels = values.chunks_exact(channels);
                let of_group = pixels.flat_map(|pixel| &pixel[group * width..][..width]).map(|&value| f64::from(value));
                let of_group: Vec<f64> = of_group.collect();
                let count = of_group.len() as f64;
                let mean = of_group.iter().sum::<f64>() / count;
                let variance = of_group.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                (mean, 1.0 / (variance + self.epsilon).sqrt())
            })
            .collect();
        let norm = |(at, value): (usize, &f32)| {
            let channel = at % channels;
            let (mean, inverse) = statistics[channel / width];
            let normed = (value - mean as f32) * inverse as f32 * weight[channel] + bias[channel];
            if self.is_activated { silu_of(normed) } else { normed }
        };
        Ok((CpuStorage::F32(values.iter().enumerate().map(norm).collect()), xl.shape().clone()))
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
        let operands = [(x, xl), (weight, weight_l), (bias, bias_l)];
        cuda::group_norm::group_norm(operands, self.groups, self.epsilon as f32, self.is_activated)
    }
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
                let last = norm.run_channels_last(&x, is_activated).expect("channels last");
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
