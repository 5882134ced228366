//! The autoencoder's encoder: pixels to a distribution of latents.
//!
//! Follows `Encoder` in the reference implementation's `autoencoder.py` (black-forest-labs/flux), whose tensor names it
//! uses. Has no random numbers of its own: callers pass the noise.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::super::config::VaeConfig;
use super::blocks::{Attention, EPSILON, Resnet, convolution};
use crate::domain::image::RgbImage;
use crate::engine::ops::convolution::{Convolution, Halving};
use crate::engine::ops::group_norm::GroupNorm;

/// Bounds of the logarithm of the variance, as in diffusers' `DiagonalGaussianDistribution`.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

/// The encoder, in the builder's dtype; its norms take their statistics in f32.
pub(crate) struct Encoder {
    conv_in: Convolution,
    /// From pixels to latents.
    levels: Vec<Level>,
    middle: (Resnet, Attention, Resnet),
    norm_out: GroupNorm,
    conv_out: Convolution,
    scaling_factor: f64,
    shift_factor: f64,
    dtype: DType,
}

struct Level {
    blocks: Vec<Resnet>,
    downsample: Option<Halving>,
}

/// The distribution of an image's latents: mean and logarithm of the variance, `[1, channels, height / 8, width / 8]`, f32.
pub(crate) struct Moments {
    pub(crate) mean: Tensor,
    pub(crate) log_variance: Tensor,
}

/// An image that is partly encoded.
#[derive(Clone)]
pub(crate) struct Encoding {
    /// The pixels, or the output of the last level that ran.
    x: Tensor,
    levels_done: usize,
}

impl Encoding {
    /// From pixels, as [`Encoder::encode`] takes them.
    pub(crate) fn of(pixels: &Tensor) -> Self {
        Self { x: pixels.clone(), levels_done: 0 }
    }
}

/// What a part of encoding leads to.
pub(crate) enum Advanced {
    /// There is more to do.
    Further(Encoding),
    Complete(Moments),
}

impl Encoder {
    /// Loads the encoder.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let vb = vb.pp("encoder");
        let groups = config.norm_num_groups;
        let widths = &config.block_out_channels;
        let (narrowest, widest) = (widths[0], widths[widths.len() - 1]);
        let mut levels = Vec::with_capacity(widths.len());
        let mut inputs = narrowest;
        for (level, &width) in widths.iter().enumerate() {
            let vb = vb.pp(format!("down.{level}"));
            let mut blocks = Vec::with_capacity(config.layers_per_block);
            for block in 0..config.layers_per_block {
                blocks.push(Resnet::load(groups, inputs, width, &vb.pp(format!("block.{block}")))?);
                inputs = width;
            }
            let downsample = || Halving::load(width, &vb.pp("downsample.conv"));
            let downsample = (level + 1 < widths.len()).then(downsample).transpose()?;
            levels.push(Level { blocks, downsample });
        }
        let middle = (
            Resnet::load(groups, widest, widest, &vb.pp("mid.block_1"))?,
            Attention::load(groups, widest, &vb.pp("mid.attn_1"))?,
            Resnet::load(groups, widest, widest, &vb.pp("mid.block_2"))?,
        );
        Ok(Self {
            conv_in: convolution(config.in_channels, narrowest, &vb.pp("conv_in"))?,
            levels,
            middle,
            norm_out: GroupNorm::load(groups, widest, EPSILON, &vb.pp("norm_out"))?,
            conv_out: convolution(widest, 2 * config.latent_channels, &vb.pp("conv_out"))?,
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor,
            dtype: vb.dtype(),
        })
    }

    /// Pixels `[1, 3, height, width]` from -1 to 1, f32, sides that are multiples of 8 -> the distribution of their latents.
    ///
    /// # Errors
    /// When the device is out of memory.
    #[cfg(test)]
    pub(crate) fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let mut encoding = Encoding::of(pixels);
        loop {
            match self.advance(&encoding)? {
                Advanced::Further(next) => encoding = next,
                Advanced::Complete(moments) => return Ok(moments),
            }
        }
    }

    /// Runs the next part: one level, or what is behind all levels. What is held between two parts is at most a quarter of the
    /// activations at the image's own size.
    ///
    /// # Errors
    /// When the device is out of memory; `encoding` is as before then.
    pub(crate) fn advance(&self, encoding: &Encoding) -> Result<Advanced> {
        let Encoding { x, levels_done } = encoding;
        let Some(level) = self.levels.get(*levels_done) else { return self.moments(x).map(Advanced::Complete) };
        let mut x = x.clone();
        if *levels_done == 0 {
            x = self.conv_in.forward(&x.to_dtype(self.dtype)?)?;
        }
        for block in &level.blocks {
            x = block.forward(&x)?;
        }
        if let Some(downsample) = &level.downsample {
            x = downsample.forward(&x)?;
        }
        Ok(Advanced::Further(Encoding { x, levels_done: levels_done + 1 }))
    }

    /// What is behind all levels.
    fn moments(&self, x: &Tensor) -> Result<Moments> {
        let (first, attention, second) = &self.middle;
        let x = second.forward(&attention.forward(&first.forward(x)?)?)?;
        let moments = self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?.to_dtype(DType::F32)?;
        let halves = moments.chunk(2, 1)?;
        Ok(Moments { mean: halves[0].contiguous()?, log_variance: halves[1].contiguous()? })
    }

    /// The mean of the distribution as the transformer takes it: what is encoded without noise (`FluxKontextPipeline` of
    /// diffusers).
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn mode(&self, moments: &Moments) -> Result<Tensor> {
        (&moments.mean - self.shift_factor)? * self.scaling_factor
    }

    /// One sample of the distribution as the transformer takes it, `[1, channels, height / 8, width / 8]`: mean plus
    /// deviation times `noise` of the same shape, shifted and scaled (`FluxImg2ImgPipeline._encode_vae_image` of
    /// diffusers).
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn sample(&self, moments: &Moments, noise: &Tensor) -> Result<Tensor> {
        let (lowest, highest) = LOG_VARIANCE;
        let deviation = (moments.log_variance.clamp(lowest, highest)? * 0.5)?.exp()?;
        ((&moments.mean + (deviation * noise)?)? - self.shift_factor)? * self.scaling_factor
    }
}

/// An image as the encoder takes it: `[1, 3, height, width]`, `2 × byte / 255 - 1`, f32, computed as diffusers'
/// `VaeImageProcessor` does.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn pixels_of(image: &RgbImage, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = image.pixels().iter().map(|byte| 2.0 * (f32::from(*byte) / 255.0) - 1.0).collect();
    let shape = (1, image.height() as usize, image.width() as usize, 3);
    Tensor::from_vec(values, shape, &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?.to_device(device)
}
