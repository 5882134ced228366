//! Convolutions that keep an image's size or double its sides first: 3×3 with a border of zeros, and 1×1.

mod channels_last;
mod halving;
mod kernel;
mod on_cpu;
pub(super) mod sizes;

use std::ops::Range;

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder};

use super::gemm::VectorUnit;
use super::kernel::Kernel;
use super::{has_kernels, is_on_cpu};

use channels_last::ChannelsLast;
pub(crate) use halving::Halving;
pub(crate) use kernel::CHOICE as KERNELS;
use on_cpu::OnCpu;

/// Maximum bytes of the matrix to which a convolution without a kernel unrolls its input, with the neighbors of every pixel: it would
/// be 10 GB for an image of 1024×1024 pixels.
pub(crate) const STRIP_BYTES_MAX: usize = 512 << 20;

/// A convolution of one image. Its form is chosen with its weights: the CUDA kernels in bf16; our own GEMMs on the CPU; elsewhere
/// candle's convolution.
pub(crate) struct Convolution(Form);

enum Form {
    ChannelsLast(ChannelsLast),
    InPlanes(InPlanes),
}

impl Convolution {
    /// `weight [outputs, inputs, kernel, kernel]` and `bias [outputs]`; the kernel is 1 or 3.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(inputs: usize, outputs: usize, kernel: usize, vb: &VarBuilder) -> Result<Self> {
        Self::new(&vb.get((outputs, inputs, kernel, kernel), "weight")?, &vb.get(outputs, "bias")?)
    }

    /// The same, 3×3, of an image whose sides are doubled first, by repeating each pixel.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load_doubling(channels: usize, vb: &VarBuilder) -> Result<Self> {
        Self::new_doubling(&vb.get((channels, channels, 3, 3), "weight")?, &vb.get(channels, "bias")?)
    }

    /// From `weight [outputs, inputs, kernel, kernel]` and `bias [outputs]`; the kernel is 1 or 3.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        Self::by(KERNELS.chosen(weight.device()), weight, bias, false)
    }

    /// The same, 3×3, of an image whose sides are doubled first.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn new_doubling(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        Self::by(KERNELS.chosen(weight.device()), weight, bias, true)
    }

    /// [`Self::new`] or [`Self::new_doubling`], by one of a CUDA device's kernels.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn by(kernel: Kernel, weight: &Tensor, bias: &Tensor, is_doubled: bool) -> Result<Self> {
        let (_, _, side, _) = weight.dims4()?;
        if has_kernels(weight) {
            return Ok(Self(Form::ChannelsLast(ChannelsLast::new(kernel, weight, bias, is_doubled)?)));
        }
        let config = Conv2dConfig { padding: side / 2, ..Conv2dConfig::default() };
        let inner = Conv2d::new(weight.clone(), Some(bias.clone()), config);
        Ok(Self(Form::InPlanes(InPlanes { inner, kernel: side, is_doubled, strip_bytes: STRIP_BYTES_MAX })))
    }

    /// `[1, inputs, height, width]` -> `[1, outputs, height, width]`, or of doubled sides, in the device's memory order.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device is out of memory.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Form::ChannelsLast(form) => form.forward(x, None),
            Form::InPlanes(form) => form.forward(x),
        }
    }

    /// `residual` plus [`Self::forward`] of `x`.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device is out of memory.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Form::ChannelsLast(form) => form.forward(x, Some(residual)),
            Form::InPlanes(form) => form.forward_rows(x, &(0..x.dim(2)?), Some(residual)),
        }
    }

    /// [`Self::forward`] for some rows of `x`, whose other rows only border them; for twice as many of an image of doubled sides.
    /// Plus `residual`, which has the result's shape.
    ///
    /// # Errors
    /// When shapes or devices do not fit, or the device is out of memory.
    pub(crate) fn forward_rows(&self, x: &Tensor, rows: &Range<usize>, residual: Option<&Tensor>) -> Result<Tensor> {
        match &self.0 {
            Form::ChannelsLast(form) => form.forward_rows(x, rows, residual),
            Form::InPlanes(form) => form.forward_rows(x, rows, residual),
        }
    }
}

/// A convolution of planes, one for each channel. It processes an image in strips of rows and reads the rows above and below
/// each strip, so that strips meet without a seam.
struct InPlanes {
    inner: Conv2d,
    kernel: usize,
    is_doubled: bool,
    strip_bytes: usize,
}

impl InPlanes {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_rows(x, &(0..x.dim(2)?), None)
    }

    fn forward_rows(&self, x: &Tensor, rows: &Range<usize>, residual: Option<&Tensor>) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (_, _, height, width) = x.dims4()?;
        let is_doubled_by_op = self.is_doubled && is_on_cpu(&x) && VectorUnit::of_this_processor().is_some();
        let (x, rows) = if self.is_doubled && !is_doubled_by_op {
            (x.upsample_nearest2d(2 * height, 2 * width)?, 2 * rows.start..2 * rows.end)
        } else {
            (x, rows.clone())
        };
        match self.inner.bias() {
            Some(bias) if is_on_cpu(&x) => {
                let residual = residual.map(Tensor::contiguous).transpose()?;
                let op = OnCpu { kernel: self.kernel, rows, residual, is_doubled: is_doubled_by_op };
                x.apply_op3_no_bwd(self.inner.weight(), bias, &op)
            }
            _ => {
                let out = self.in_strips(&x)?.narrow(2, rows.start, rows.len())?.contiguous()?;
                match residual {
                    Some(residual) => residual + out,
                    None => Ok(out),
                }
            }
        }
    }

    /// By candle's own convolution.
    fn in_strips(&self, x: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        let row_bytes = channels * self.kernel * self.kernel * width * x.dtype().size_in_bytes();
        let strip_rows = (self.strip_bytes / row_bytes.max(1)).max(1);
        if strip_rows >= height {
            return self.inner.forward(x);
        }
        let border = self.kernel / 2;
        let strip = |top: usize| {
            let rows = strip_rows.min(height - top);
            let (above, below) = (border.min(top), border.min(height - top - rows));
            let seen = x.narrow(2, top - above, above + rows + below)?.contiguous()?;
            // Contiguous, so that the concatenation is as well.
            self.inner.forward(&seen)?.narrow(2, above, rows)?.contiguous()
        };
        Tensor::cat(&(0..height).step_by(strip_rows).map(strip).collect::<Result<Vec<_>>>()?, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).expect("randn")
    }

    fn convolution(inputs: usize, outputs: usize, kernel: usize, strip_bytes: usize) -> InPlanes {
        let config = Conv2dConfig { padding: kernel / 2, ..Conv2dConfig::default() };
        let inner = Conv2d::new(random(&[outputs, inputs, kernel, kernel]), Some(random(&[outputs])), config);
        InPlanes { inner, kernel, is_doubled: false, strip_bytes }
    }

    fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
        assert!(found.dims() == expected.dims() && found.is_contiguous(), "{what}");
        let largest: f32 = (found - expected).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
        assert!(largest < 1e-4, "{what}: {largest:e}");
    }

    #[test]
    fn the_fused_op_equals_candles() {
        for (kernel, inputs, outputs, height, width) in [
            (3, 4, 5, 11, 6),
            (3, 16, 3, 1, 1),
            (3, 2, 40, 2, 700),
            (3, 8, 8, 70, 33),
            (1, 6, 9, 30, 40),
            (1, 3, 1, 1, 5),
        ] {
            let convolution = convolution(inputs, outputs, kernel, STRIP_BYTES_MAX);
            let x = random(&[1, inputs, height, width]);
            let what = format!("{kernel}x{kernel}, {inputs} to {outputs}, {height}x{width}");
            let fused = convolution.forward(&x).expect("fused");
            assert_close(&fused, &convolution.inner.forward(&x).expect("composed"), &what);
        }
    }

    /// For all heights of strips: one row, some and a rest, all but one.
    #[test]
    fn strips_meet_without_a_seam() {
        let x = random(&[1, 4, 11, 6]);
        for kernel in [1, 3] {
            for rows in [1, 2, 5, 10] {
                let convolution = convolution(4, 5, kernel, rows * 4 * kernel * kernel * 6 * 4);
                let strips = convolution.in_strips(&x).expect("strips");
                assert_close(&strips, &convolution.inner.forward(&x).expect("unstripped"), &format!("{rows} rows"));
            }
        }
    }

    /// With operands as the CUDA kernel has them: 3×3, 1×1 and after doubling, with a residual and without.
    #[test]
    fn channels_last_equals_planes() {
        for (kernel, is_doubled, inputs, outputs, height, width) in [
            (3, false, 8, 16, 7, 5),
            (3, false, 16, 3, 1, 1),
            (3, true, 8, 8, 5, 4),
            (3, true, 24, 11, 1, 3),
            (1, false, 8, 5, 3, 6),
            // The encoder's first: inputs that are no chunk.
            (3, false, 3, 16, 4, 5),
        ] {
            let weight = random(&[outputs, inputs, kernel, kernel]);
            let bias = random(&[outputs]);
            let planes = Convolution::by(Kernel::Warp, &weight, &bias, is_doubled).expect("planes");
            assert!(matches!(planes.0, Form::InPlanes(_)));
            let pixels = ChannelsLast::new(Kernel::Warp, &weight, &bias, is_doubled).expect("pixels");
            let x = random(&[1, inputs, height, width]);
            let scale = 1 + usize::from(is_doubled);
            let residual = random(&[1, outputs, scale * height, scale * width]);
            let what = format!("{kernel}x{kernel}, {inputs} to {outputs}, {height}x{width}, doubled: {is_doubled}");
            let found = pixels.forward(&x, None).and_then(|found| found.contiguous()).expect("convolves");
            assert_close(&found, &planes.forward(&x).expect("convolves"), &what);
            let found = pixels.forward(&x, Some(&residual)).and_then(|found| found.contiguous()).expect("convolves");
            assert_close(&found, &planes.forward_onto(&x, &residual).expect("convolves"), &what);
        }
    }

    /// Also where rows and columns have no neighbors.
    #[test]
    fn a_doubling_convolution_is_that_of_repeated_pixels() {
        for (inputs, outputs, height, width) in [(4, 5, 6, 9), (16, 3, 1, 1), (8, 8, 5, 70), (3, 12, 40, 1)] {
            let (weight, bias) = (random(&[outputs, inputs, 3, 3]), random(&[outputs]));
            let x = random(&[1, inputs, height, width]);
            let repeated = x.upsample_nearest2d(2 * height, 2 * width).expect("repeats");
            let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
            let expected =
                Conv2d::new(weight.clone(), Some(bias.clone()), config).forward(&repeated).expect("convolves");
            let doubling = Convolution::new_doubling(&weight, &bias).expect("planes");
            assert_close(
                &doubling.forward(&x).expect("convolves"),
                &expected,
                &format!("{inputs} to {outputs}, {height}x{width}"),
            );
        }
    }

    /// All rows at once and some at a time, with a row that borders them where there is one: in planes to the bit.
    #[test]
    fn rows_by_themselves_are_rows_of_the_whole_image() {
        let values = |tensor: &Tensor| tensor.flatten_all().and_then(|values| values.to_vec1::<f32>()).expect("values");
        for (kernel, is_doubled, inputs, outputs, height, width) in [
            (3, false, 8, 16, 7, 5),
            (3, false, 16, 3, 9, 40),
            (3, true, 8, 8, 5, 48),
            (3, false, 24, 40, 31, 100),
            (1, false, 8, 5, 6, 6),
        ] {
            let (weight, bias) = (random(&[outputs, inputs, kernel, kernel]), random(&[outputs]));
            let planes = Convolution::by(Kernel::Warp, &weight, &bias, is_doubled).expect("planes");
            let last = ChannelsLast::new(Kernel::Warp, &weight, &bias, is_doubled).expect("pixels");
            let x = random(&[1, inputs, height, width]);
            let scale = 1 + usize::from(is_doubled);
            let residual = random(&[1, outputs, scale * height, scale * width]);
            let expected = planes.forward_onto(&x, &residual).expect("convolves");
            let found = |rows: usize, last: Option<&ChannelsLast>| -> Result<Tensor> {
                let strips = (0..height).step_by(rows).map(|top| {
                    let bottom = height.min(top + rows);
                    let (first, end) = (top.saturating_sub(1), height.min(bottom + 1));
                    let seen = x.narrow(2, first, end - first)?.contiguous()?;
                    let own = residual.narrow(2, scale * top, scale * (bottom - top))?.contiguous()?;
                    let rows = top - first..bottom - first;
                    match last {
                        Some(last) => last.forward_rows(&seen, &rows, Some(&own))?.contiguous(),
                        None => planes.forward_rows(&seen, &rows, Some(&own)),
                    }
                });
                Tensor::cat(&strips.collect::<Result<Vec<_>>>()?, 2)
            };
            for rows in [1, 2, 4, height] {
                let what = format!("{kernel}x{kernel}, {inputs} to {outputs}, {rows} rows of {height}x{width}");
                let strips = found(rows, None).expect("convolves");
                assert!(values(&strips) == values(&expected), "{what}");
                assert_close(&found(rows, Some(&last)).expect("convolves"), &expected, &what);
            }
        }
    }

    /// One operation's output is the next one's input, without a copy.
    #[test]
    fn channels_stay_last() {
        let form = ChannelsLast::new(Kernel::Warp, &random(&[8, 8, 3, 3]), &random(&[8]), false).expect("pixels");
        let out = form.forward(&random(&[1, 8, 4, 6]), None).expect("convolves");
        assert_eq!(out.stride(), [8 * 4 * 6, 1, 8 * 6, 8]);
        assert!(out.permute((0, 2, 3, 1)).expect("permutes").is_contiguous());
    }
}
