//! Images as a vision transformer takes them: normalized planes, and patches of them as rows.

use candle_core::{Result, Tensor};

use crate::domain::image::RgbImage;

/// Channels of an image.
pub(super) const CHANNELS: usize = 3;

/// What is subtracted from a channel, and what the difference is divided by, of values from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalization {
    pub(super) mean: [f32; CHANNELS],
    pub(super) deviation: [f32; CHANNELS],
}

/// The bytes of an image as planes `[3, height, width]`, from 0 to 255.
pub(super) fn planes(image: &RgbImage) -> Vec<f32> {
    let channel = |channel: usize| image.pixels().iter().skip(channel).step_by(CHANNELS).map(|byte| f32::from(*byte));
    (0..CHANNELS).flat_map(channel).collect()
}

/// Planes of values from 0 to 255, each channel normalized, in place.
pub(super) fn normalize(planes: &mut [f32], by: Normalization) {
    let pixels = (planes.len() / CHANNELS).max(1);
    for ((plane, mean), deviation) in planes.chunks_mut(pixels).zip(by.mean).zip(by.deviation) {
        for value in plane {
            *value = (*value / 255.0 - mean) / deviation;
        }
    }
}

/// The square patches of `pixels [3, height, width]` as rows `[patches, 3 × side × side]`, row by row from the top left; what is
/// left over at the right and below is not seen. A convolution whose stride is its kernel's side is a linear layer over them.
///
/// # Errors
/// When an image is smaller than a patch, or the device is out of memory.
pub(super) fn patches(pixels: &Tensor, side: usize) -> Result<Tensor> {
    let (channels, height, width) = pixels.dims3()?;
    let (rows, columns) = (height / side, width / side);
    pixels
        .narrow(1, 0, rows * side)?
        .narrow(2, 0, columns * side)?
        .contiguous()?
        .reshape((channels, rows, side, columns, side))?
        .permute((1, 3, 0, 2, 4))?
        .contiguous()?
        .reshape((rows * columns, channels * side * side))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn patches_are_those_of_a_convolution() {
        let (height, width, side, outputs) = (7, 10, 3, 4);
        let pixels = Tensor::randn(0.0_f32, 1.0, (CHANNELS, height, width), &Device::Cpu).expect("randn");
        let kernel = Tensor::randn(0.0_f32, 1.0, (outputs, CHANNELS, side, side), &Device::Cpu).expect("randn");
        let rows = patches(&pixels, side).expect("patches");
        assert_eq!(rows.dims(), [6, 27], "what is left over is not seen");
        let found =
            rows.matmul(&kernel.flatten_from(1).and_then(|kernel| kernel.t()).expect("a matrix")).expect("product");
        let convolved =
            pixels.unsqueeze(0).and_then(|pixels| pixels.conv2d(&kernel, 0, side, 1, 1)).expect("convolved");
        let expected = convolved.flatten_from(2).and_then(|flat| flat.squeeze(0)?.t()?.contiguous()).expect("rows");
        let largest: f32 = (found - expected).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
        assert!(largest < 1e-5, "{largest:e}");
    }

    #[test]
    fn planes_are_normalized_channel_by_channel() {
        let image = RgbImage::new(2, 1, vec![0, 255, 51, 255, 0, 102]).expect("two pixels");
        let mut values = planes(&image);
        assert_eq!(values, [0.0, 255.0, 255.0, 0.0, 51.0, 102.0]);
        normalize(&mut values, Normalization { mean: [0.5, 0.0, 0.2], deviation: [0.5, 1.0, 0.1] });
        let expected = [-1.0, 1.0, 1.0, 0.0, 0.0, 2.0];
        assert!(values.iter().zip(expected).all(|(value, wanted)| (value - wanted).abs() < 1e-6), "{values:?}");
    }
}
