//! How a model uses a device's memory, planned before anything is copied there: how many tokens fit in a step, how large an
//! image may be, and whether the model fits at all.
//!
//! Pure arithmetic. Activations are counted from the operations of one block, where a step has its peak.

use std::fmt;

use candle_core::DType;

use crate::domain::device::Offload;
use crate::domain::engine::EngineLimits;

use crate::engine::checkpoint::WeightBytes;
use crate::engine::models::flux1::config::Configs;
use crate::engine::ops::convolution::STRIP_BYTES_MAX;

/// For libraries, the driver's context and the encoding of a prompt.
const WORKSPACE_BYTES: usize = 1 << 30;

/// A single block holds, for each token, its input, the normalized input, rotated queries, keys and values (3), attention
/// beside the feed-forward half (5), and, where cublasLt cannot write that in place, the matrix product and its GELU (4
/// each): 18 times the stream's width, and a reserve.
const STREAM_WIDTHS_PER_TOKEN: usize = 24;

/// Copies of the decoder's widest activation, at the image's own size, that are held at a time.
const DECODER_COPIES: usize = 6;

/// Tokens of the smallest step that must fit: an image of 512×512 pixels with its prompt.
const SMALLEST_STEP_TOKENS: usize = 1024 + 512;

/// How much memory weights and activations take, and the limits that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    weights: WeightBytes,
    /// Bytes of T5 that are on the device at a time.
    t5_resident: usize,
    token: usize,
    pixel: usize,
    strip: usize,
    free: usize,
    pub(crate) limits: EngineLimits,
    /// Maximum pixels of an image.
    pub(crate) pixels_max: usize,
}

/// A device that is too small for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device has {free} of memory free, and the model needs {needed} (weights {weights}, and memory to generate \
     512x512 pixels){hint}"
)]
pub struct TooLarge {
    free: Gib,
    needed: Gib,
    weights: Gib,
    hint: Hint,
}

/// How to fix that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    OffloadText { saves: Gib },
    LargerDevice,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OffloadText { saves } => write!(f, ": `--offload text` saves {saves}"),
            Self::LargerDevice => f.write_str(": use a larger device, or `--device cpu`"),
        }
    }
}

/// Bytes, printed in GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gib(usize);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
    }
}

impl MemoryPlan {
    /// A plan for a device with `free` bytes and weights in `dtype`. `limits` are upper bounds.
    ///
    /// # Errors
    /// When not even a small image would fit.
    pub(crate) fn new(
        configs: &Configs,
        weights: WeightBytes,
        dtype: DType,
        offload: Offload,
        (free, limits): (usize, EngineLimits),
    ) -> Result<Self, TooLarge> {
        // The table of embeddings stays in the host's memory.
        let t5_blocks = weights.t5.saturating_sub(configs.t5.vocab_size * configs.t5.d_model * dtype.size_in_bytes());
        let t5_resident = match offload {
            Offload::Nothing => t5_blocks,
            Offload::Text => t5_blocks / configs.t5.num_layers.max(1),
        };
        let resident = weights.transformer + weights.vae + weights.clip + t5_resident;
        let transformer = &configs.transformer;
        let tables = transformer.attention_head_dim * size_of::<f32>();
        let token = STREAM_WIDTHS_PER_TOKEN * transformer.hidden_size() * dtype.size_in_bytes() + 2 * tables;
        let widths = &configs.vae.block_out_channels;
        let widest = widths.iter().take(2).copied().max().unwrap_or_default();
        let pixel = DECODER_COPIES * widest * size_of::<f32>();
        let strip = STRIP_BYTES_MAX;

        let available = free.saturating_sub(resident + WORKSPACE_BYTES);
        let smallest = (SMALLEST_STEP_TOKENS * token).max(512 * 512 * pixel + strip);
        if available < smallest {
            let saves = t5_blocks - t5_blocks / configs.t5.num_layers.max(1);
            let hint = match offload {
                Offload::Nothing if available + saves >= smallest => Hint::OffloadText { saves: Gib(saves) },
                _ => Hint::LargerDevice,
            };
            let needed = Gib(resident + WORKSPACE_BYTES + smallest);
            return Err(TooLarge { free: Gib(free), needed, weights: Gib(resident), hint });
        }
        let step_tokens_max = limits.step_tokens_max.min(available / token);
        let pixels_max = available.saturating_sub(strip) / pixel;
        let limits = EngineLimits { step_tokens_max, ..limits };
        Ok(Self { weights, t5_resident, token, pixel, strip, free, limits, pixels_max })
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightBytes { transformer, vae, clip, .. } = self.weights;
        write!(
            f,
            "weights: transformer {}, text {}, autoencoder {}; a step: {} KiB a token, {} tokens fit; decoding: {} KiB a \
             pixel and {}, {:.1} megapixels fit; {} were free",
            Gib(transformer),
            Gib(clip + self.t5_resident),
            Gib(vae),
            self.token >> 10,
            self.limits.step_tokens_max,
            self.pixel >> 10,
            Gib(self.strip),
            self.pixels_max as f64 / 1e6,
            Gib(self.free),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::precision::Precision;

    const LIMITS: EngineLimits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
    /// Of FLUX.1-dev, in bf16 (the autoencoder: f32).
    const FLUX_DEV: WeightBytes = WeightBytes {
        transformer: 2 * 11_901_408_320,
        vae: 4 * 83_819_683,
        clip: 2 * 123_060_480,
        t5: 2 * 4_762_310_656,
    };

    fn plan(gib: usize, offload: Offload) -> Result<MemoryPlan, TooLarge> {
        MemoryPlan::new(&Configs::flux_dev(), FLUX_DEV, DType::BF16, offload, (gib << 30, LIMITS))
    }

    #[test]
    fn an_h200_fits_the_largest_requests() {
        let plan = plan(139, Offload::Nothing).expect("fits");
        assert_eq!(plan.limits, LIMITS);
        assert!(plan.pixels_max > 2048 * 2048, "{plan}");
        assert!(plan.to_string().contains("transformer 22.2 GiB, text 8.9 GiB"), "{plan}");
    }

    #[test]
    fn a_smaller_device_has_smaller_limits() {
        let plan = plan(36, Offload::Nothing).expect("fits");
        assert!((5_000..LIMITS.step_tokens_max).contains(&plan.limits.step_tokens_max), "{plan}");
        assert!((512 * 512..2048 * 2048).contains(&plan.pixels_max), "{plan}");
        assert!(super::tests::plan(36, Offload::Text).expect("fits").pixels_max > plan.pixels_max);
    }

    #[test]
    fn in_fp8_a_smaller_device_suffices() {
        let configs = Configs::flux_dev();
        let linears = configs.transformer.block_linears();
        let saved = crate::engine::storage::bytes_saved(linears, DType::BF16, Precision::Fp8);
        let weights = WeightBytes { transformer: FLUX_DEV.transformer - saved, ..FLUX_DEV };
        let plan = |gib: usize, offload| MemoryPlan::new(&configs, weights, DType::BF16, offload, (gib << 30, LIMITS));
        assert!(plan(139, Offload::Nothing).expect("fits").to_string().contains("transformer 14.2 GiB"));
        plan(27, Offload::Nothing).expect("fits");
        plan(19, Offload::Text).expect("fits");
    }

    #[test]
    fn an_error_about_memory_has_a_hint() {
        let error = plan(32, Offload::Nothing).expect_err("too small").to_string();
        assert!(error.contains("32.0 GiB of memory free") && error.contains("`--offload text` saves 8."), "{error}");
        plan(32, Offload::Text).expect("fits");
        let error = plan(24, Offload::Text).expect_err("too small").to_string();
        assert!(error.contains("a larger device"), "{error}");
    }
}
