//! A 3×3 convolution that halves an image's sides, as the autoencoder's encoder has it: padded by one row below and one column at
//! the right, not on all sides.

use candle_core::{D, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder};

use super::channels_last::ChannelsLast;
use super::{KERNELS, STRIP_BYTES_MAX};
use crate::engine::ops::kernel::Kernel;
use crate::engine::ops::{channels_first, channels_last, has_kernels};

/// The convolution. Its form is chosen with its weights: the CUDA kernels in bf16, elsewhere candle's convolution.
pub(crate) struct Halving(Form);

enum Form {
    /// At the full size: every other of its outputs is one of this. Four times the products, on tensor cores, take less time
    /// than to spread the inputs out.
    Full(ChannelsLast),
    Strided {
        inner: Conv2d,
        strip_bytes: usize,
    },
}

impl Halving {
    /// `weight [channels, channels, 3, 3]` and `bias [channels]`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let (weight, bias) = (vb.get((channels, channels, 3, 3), "weight")?, vb.get(channels, "bias")?);
        if has_kernels(&weight) {
            return Self::full(KERNELS.chosen(weight.device()), &weight, &bias);
        }
        let config = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
        let inner = Conv2d::new(weight, Some(bias), config);
        Ok(Self(Form::Strided { inner, strip_bytes: STRIP_BYTES_MAX }))
    }

    fn full(kernel: Kernel, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        Ok(Self(Form::Full(ChannelsLast::new(kernel, weight, bias, false)?)))
    }

    /// `[1, channels, height, width]`, of even sides -> `[1, channels, height / 2, width / 2]`, in the device's memory order.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device is out of memory.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Form::Full(form) => every_other(&form.forward(x, None)?),
            Form::Strided { inner, strip_bytes } => in_strips(inner, *strip_bytes, x),
        }
    }
}

/// The pixels of odd rows and columns: around those a border on all sides is none above and at the left.
fn every_other(image: &Tensor) -> Result<Tensor> {
    let image = channels_last(image)?;
    let (_, height, width, channels) = image.dims4()?;
    let pairs = image.reshape((height / 2, 2, width / 2, 2, channels))?;
    let odd = pairs.narrow(1, 1, 1)?.narrow(3, 1, 1)?.contiguous()?;
    channels_first(&odd.reshape((1, height / 2, width / 2, channels))?)
}

/// By candle's own convolution, which spreads out its input: strips of rows bound that.
fn in_strips(inner: &Conv2d, strip_bytes: usize, x: &Tensor) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let padded = x.contiguous()?.pad_with_zeros(D::Minus1, 0, 1)?.pad_with_zeros(D::Minus2, 0, 1)?;
    let row_bytes = channels * 9 * (width / 2) * x.dtype().size_in_bytes();
    let strip_rows = (strip_bytes / row_bytes.max(1)).max(1);
    let rows = height / 2;
    if strip_rows >= rows {
        return inner.forward(&padded);
    }
    let strip = |top: usize| {
        let count = strip_rows.min(rows - top);
        inner.forward(&padded.narrow(2, 2 * top, 2 * count + 1)?.contiguous()?)
    };
    Tensor::cat(&(0..rows).step_by(strip_rows).map(strip).collect::<Result<Vec<_>>>()?, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).expect("randn")
    }

    /// Both forms against candle's convolution of the padded image, for strips of one row, some and a rest, and all.
    #[test]
    fn all_forms_are_the_padded_convolution_of_stride_two() {
        for (height, width) in [(2, 2), (10, 6), (4, 16)] {
            let (weight, bias, x) = (random(&[8, 8, 3, 3]), random(&[8]), random(&[1, 8, height, width]));
            let config = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
            let inner = || Conv2d::new(weight.clone(), Some(bias.clone()), config);
            let padded = x.pad_with_zeros(3, 0, 1).and_then(|x| x.pad_with_zeros(2, 0, 1)).expect("pads");
            let expected = inner().forward(&padded).expect("convolves");
            let is_close = |found: &Tensor| {
                assert_eq!(found.dims(), [1, 8, height / 2, width / 2]);
                let largest = (found - &expected).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
                assert!(largest.expect("same shapes") < 1e-4, "{height}x{width}");
            };
            let row_bytes = 8 * 9 * (width / 2) * 4;
            for strip_bytes in [1, 2 * row_bytes, STRIP_BYTES_MAX] {
                let strided = Halving(Form::Strided { inner: inner(), strip_bytes });
                is_close(&strided.forward(&x).expect("convolves"));
            }
            let full = Halving::full(Kernel::Warp, &weight, &bias).expect("a form");
            is_close(&full.forward(&x).expect("convolves"));
        }
    }
}
