//! How a model uses a device's memory, planned before anything is copied there: how many tokens fit in a step, how large an
//! image may be, and whether the model fits at all.
//!
//! Pure arithmetic. Activations are counted from the operations of one block, where a step has its peak.

use std::fmt;

use candle_core::DType;

use crate::domain::device::Offload;
use crate::domain::engine::EngineLimits;

use super::autoencoder::PixelBytes;
use crate::engine::checkpoint::{BlockBytes, StreamedBlocks, WeightBytes};
use crate::engine::models::flux1::config::{Configs, TransformerConfig};

/// For libraries, the driver's context and the encoding of a prompt.
const WORKSPACE_BYTES: usize = 1 << 30;

/// A single block holds, for each token, its input, the normalized input, rotated queries, keys and values (3), attention
/// beside the feed-forward half (5), and, where cublasLt cannot write that in place, the matrix product and its GELU (4
/// each): 18 times the stream's width.
const STREAM_WIDTHS_PER_TOKEN: usize = 18;

/// The same with a reserve. In it is also what an image keeps between steps: latents, noise, a mask, and channels that are joined to
/// the latents, together less than a tenth of it.
const STREAM_WIDTHS_RESERVED: usize = 24;

/// Tokens of the smallest step that must fit: an image of 512×512 pixels with its prompt.
const SMALLEST_STEP_TOKENS: usize = 1024 + 512;

/// Blocks stay in memory only where an image of so many pixels, with its prompt, still fits.
const USUAL_PIXELS: usize = 1024 * 1024;
const USUAL_STEP_TOKENS: usize = 4096 + 512;

/// Rates at which blocks are read, for forecasts: out of the page cache over PCIe 4.0 with 16 lanes, and from an NVMe disk.
const LINK_BYTES_PER_SECOND: f64 = 25e9;
const DISK_BYTES_PER_SECOND: f64 = 3e9;

/// How much memory weights and activations take, and the limits that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    weights: WeightBytes,
    /// Bytes of T5 that are on the device at a time.
    t5_resident: usize,
    /// Whether T5's blocks are copied to the device for each prompt.
    pub(crate) is_text_streamed: bool,
    /// What of the transformer is read for steps, if any.
    streamed: Option<Streamed>,
    token: usize,
    pixel: PixelBytes,
    pub(crate) free: usize,
    /// Bytes for images.
    available: usize,
    pub(crate) limits: EngineLimits,
    pub(crate) pixels: PixelLimits,
}

/// Maximum pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PixelLimits {
    pub(crate) output: usize,
    /// Of one that is not decoded in strips.
    pub(crate) whole: usize,
    /// Of an input image.
    pub(crate) input: usize,
}

impl PixelLimits {
    /// No limits.
    pub(crate) const NONE: Self = Self { output: usize::MAX, whole: usize::MAX, input: usize::MAX };

    /// Whether an image of so many pixels needs some of the memory that adapters may take, to be decoded.
    pub(crate) fn needs_that_of_adapters(self, pixels: usize) -> bool {
        pixels > self.output - self.output / ADAPTER_PARTS
    }
}

/// What of the transformer is read for steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Streamed {
    blocks: StreamedBlocks,
    /// Bytes of blocks for each step.
    read: usize,
    /// Bytes of modulations, for several steps.
    modulations: usize,
}

/// A device that is too small for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device has {free} of memory free, and the model needs {needed} (weights {weights}{attached}, and memory to generate \
     512x512 pixels){hint}"
)]
pub struct TooLarge {
    free: Gib,
    needed: Gib,
    weights: Gib,
    attached: Attached,
    hint: Hint,
}

impl TooLarge {
    /// The row of an arrangement that does not fit.
    pub(crate) fn row(&self, are_stored: bool, offload: Offload) -> String {
        let place = match offload {
            Offload::Auto | Offload::Nothing => "all in memory",
            Offload::Text => "text streamed",
            Offload::Blocks => "text and blocks streamed",
        };
        format!("{:<9}  {place:<42}  needs {}", kept(are_stored), self.needed)
    }
}

/// How weights are kept, in words.
fn kept(are_stored: bool) -> &'static str {
    if are_stored { "as stored" } else { "expanded" }
}

/// How to fix that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    OffloadText { saves: Gib },
    OffloadBlocks,
    LargerDevice,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OffloadText { saves } => write!(f, ": `--offload text` saves {saves}"),
            Self::OffloadBlocks => f.write_str(
                ": use `--offload blocks`, a quantized file of the model, a larger device, or `--device cpu`",
            ),
            Self::LargerDevice => {
                f.write_str(": use a quantized file of the model, a larger device, or `--device cpu`")
            }
        }
    }
}

/// Bytes of models beside the checkpoint, in words where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attached(usize);

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ", of them {} of the ControlNets beside it", Gib(self.0)) }
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
            Offload::Auto | Offload::Nothing => t5_blocks,
            Offload::Text | Offload::Blocks => t5_blocks / configs.t5.num_layers.max(1),
        };
        let of_checkpoint = weights.transformer + weights.vae + weights.clip + t5_resident + weights.expanding;
        let resident = of_checkpoint + weights.attached;
        let transformer = &configs.transformer;
        let widths_reserved = STREAM_WIDTHS_RESERVED - STREAM_WIDTHS_PER_TOKEN + weights.residuals;
        let reserve = widths_reserved * transformer.hidden_size();
        let token = token_bytes(transformer, dtype) + reserve * dtype.size_in_bytes();
        let pixel = PixelBytes::of(&configs.vae, dtype);

        let available = free.saturating_sub(resident + WORKSPACE_BYTES);
        let smallest = (SMALLEST_STEP_TOKENS * token).max(512 * 512 * pixel.decoding_strips);
        if available < smallest {
            let saves = t5_blocks - t5_blocks / configs.t5.num_layers.max(1);
            let hint = match offload {
                Offload::Nothing if available + saves >= smallest => Hint::OffloadText { saves: Gib(saves) },
                Offload::Blocks => Hint::LargerDevice,
                Offload::Auto | Offload::Nothing | Offload::Text => Hint::OffloadBlocks,
            };
            let needed = Gib(resident + WORKSPACE_BYTES + smallest);
            let attached = Attached(weights.attached);
            return Err(TooLarge { free: Gib(free), needed, weights: Gib(resident), attached, hint });
        }
        let step_tokens_max = limits.step_tokens_max.min(available / token);
        let pixels = PixelLimits {
            output: available / pixel.decoding_strips,
            whole: available / pixel.decoding,
            input: available / pixel.encoding,
        };
        let limits = EngineLimits { step_tokens_max, ..limits };
        let is_text_streamed = matches!(offload, Offload::Text | Offload::Blocks);
        let streamed = None;
        Ok(Self { weights, t5_resident, is_text_streamed, streamed, token, pixel, free, available, limits, pixels })
    }

    /// A plan as [`Self::new`] makes it, with T5 and as many of the transformer's blocks streamed as must be. Of `blocks`, the
    /// modulations are always: they are read once for several steps.
    ///
    /// # Errors
    /// When not even a small image would fit.
    pub(crate) fn with_streamed_blocks(
        configs: &Configs,
        weights: WeightBytes,
        blocks: &BlockBytes,
        dtype: DType,
        room: (usize, EngineLimits),
    ) -> Result<Self, TooLarge> {
        let of_blocks = blocks.blocks.iter().sum::<usize>();
        let others = weights.transformer.saturating_sub(of_blocks + blocks.modulations);
        let plan = |resident| -> Result<Self, TooLarge> {
            let streamed = blocks.streamed(resident);
            let read = blocks.read_for_a_step(streamed);
            let transformer = others + of_blocks - read + blocks.read_at_a_time(streamed);
            let weights = WeightBytes { transformer, ..weights };
            let plan = Self::new(configs, weights, dtype, Offload::Blocks, room)?;
            let streamed = Streamed { blocks: streamed, read, modulations: blocks.modulations };
            Ok(Self { streamed: Some(streamed), ..plan })
        };
        let is_usual =
            |plan: &Self| plan.limits.step_tokens_max >= USUAL_STEP_TOKENS && plan.pixels.output >= USUAL_PIXELS;
        let most = (1..=blocks.blocks.len()).rev().find_map(|resident| plan(resident).ok().filter(is_usual));
        most.map_or_else(|| plan(0), Ok)
    }
}

/// Bytes that a step holds for each of its tokens.
pub(crate) fn token_bytes(transformer: &TransformerConfig, dtype: DType) -> usize {
    let tables = transformer.attention_head_dim * size_of::<f32>();
    STREAM_WIDTHS_PER_TOKEN * transformer.hidden_size() * dtype.size_in_bytes() + 2 * tables
}

/// Adapters take at most one part in so many of the memory that is for images. It is not reserved: adapters that no image uses leave
/// before a large image is decoded, and when memory runs out.
const ADAPTER_PARTS: usize = 8;

/// Caches between steps take at most one part in so many of it. It is not reserved either, and is less than what a step reserves.
const CACHE_PARTS: usize = 16;

impl MemoryPlan {
    /// Maximum bytes of caches between steps.
    pub(crate) fn caches_bytes(&self) -> usize {
        self.available / CACHE_PARTS
    }

    /// Maximum bytes of adapters.
    pub(crate) fn adapters_bytes(&self) -> usize {
        self.available / ADAPTER_PARTS
    }

    /// The limits of pixels where adapters have all of theirs: then larger images are decoded in strips.
    pub(crate) fn pixels_beside_adapters(&self) -> PixelLimits {
        PixelLimits { whole: (self.available - self.adapters_bytes()) / self.pixel.decoding, ..self.pixels }
    }

    /// Whether matrices are kept as they are stored.
    pub(crate) fn are_stored(&self) -> bool {
        self.weights.expanding > 0
    }

    /// Which of the transformer's blocks are read for each step.
    pub(crate) fn streamed_blocks(&self) -> Option<StreamedBlocks> {
        self.streamed.map(|streamed| streamed.blocks)
    }

    /// What it says of the weights, and what fits beside them: a row of a table.
    pub(crate) fn row(&self) -> String {
        let WeightBytes { transformer, vae, clip, expanding, attached, .. } = self.weights;
        let kept = kept(self.are_stored());
        let place = match (self.streamed, self.is_text_streamed) {
            (None, false) => "all in memory".to_owned(),
            (None, true) => "text streamed".to_owned(),
            (Some(Streamed { blocks, .. }), _) => {
                format!("text streamed, {} of {} blocks in memory", blocks.resident, blocks.total)
            }
        };
        let read = self.streamed.map_or_else(String::new, |Streamed { read, modulations, .. }| {
            format!("  a step reads {}, several {} of modulations", Gib(read), Gib(modulations))
        });
        format!(
            "{kept:<9}  {place:<42}  {:>8} of weights  {:>5} tokens  {:>5.1} megapixels{read}",
            Gib(transformer + vae + clip + self.t5_resident + expanding + attached).to_string(),
            self.limits.step_tokens_max,
            self.pixels.output as f64 / 1e6,
        )
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightBytes { transformer, vae, clip, attached, .. } = self.weights;
        let kept = if self.are_stored() { " as stored" } else { "" };
        let streamed = if self.is_text_streamed { " at a time" } else { "" };
        write!(
            f,
            "weights{kept}: transformer {}, text {}{streamed}, autoencoder {}{}; a step: {} KiB a token, {} tokens fit; decoding: {} bytes a \
             pixel, in strips {}, encoding {}; {:.1} megapixels fit, {:.1} without strips, {:.1} of an input image; {} were free{}",
            Gib(transformer),
            Gib(clip + self.t5_resident),
            Gib(vae),
            if attached == 0 { String::new() } else { format!(", ControlNets {}", Gib(attached)) },
            self.token >> 10,
            self.limits.step_tokens_max,
            self.pixel.decoding,
            self.pixel.decoding_strips,
            self.pixel.encoding,
            self.pixels.output as f64 / 1e6,
            self.pixels.whole as f64 / 1e6,
            self.pixels.input as f64 / 1e6,
            Gib(self.free),
            self.streamed.map_or_else(String::new, reading),
        )
    }
}

/// What is read for each step, and how long that takes at least.
fn reading(Streamed { blocks, read, modulations }: Streamed) -> String {
    let milliseconds = |rate: f64| 1e3 * read as f64 / rate;
    format!(
        "; {} of {} blocks stay in memory, a step reads {}: at least {:.0} ms out of the page cache, {:.0} ms from a disk; \
         several steps read {} of modulations",
        blocks.resident,
        blocks.total,
        Gib(read),
        milliseconds(LINK_BYTES_PER_SECOND),
        milliseconds(DISK_BYTES_PER_SECOND),
        Gib(modulations),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::precision::Precision;

    const LIMITS: EngineLimits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
    /// Of FLUX.1-dev, in bf16.
    const FLUX_DEV: WeightBytes = WeightBytes {
        transformer: 2 * 11_901_408_320,
        vae: 2 * 83_819_683,
        clip: 2 * 123_060_480,
        t5: 2 * 4_762_310_656,
        expanding: 0,
        attached: 0,
        residuals: 0,
    };

    fn plan(gib: usize, offload: Offload) -> Result<MemoryPlan, TooLarge> {
        MemoryPlan::new(&Configs::flux_dev(), FLUX_DEV, DType::BF16, offload, (gib << 30, LIMITS))
    }

    #[test]
    fn an_h200_fits_the_largest_requests() {
        let plan = plan(139, Offload::Nothing).expect("fits");
        assert_eq!(plan.limits, LIMITS);
        assert!(plan.pixels.whole > 2048 * 2048, "{plan}");
        assert!(plan.to_string().contains("transformer 22.2 GiB, text 8.9 GiB"), "{plan}");
    }

    /// In bytes: what an image takes that is decoded, and adapters that may be there then.
    #[test]
    fn an_image_is_decoded_beside_all_adapters_or_they_leave() {
        for (gib, offload) in [(31, Offload::Text), (39, Offload::Nothing), (139, Offload::Nothing)] {
            let plan = plan(gib, offload).expect("fits");
            let pixels = plan.pixels_beside_adapters();
            assert_eq!((pixels.output, pixels.input), (plan.pixels.output, plan.pixels.input));
            assert!(pixels.whole * plan.pixel.decoding + plan.adapters_bytes() <= plan.available, "{plan}");
            let largest = pixels.output - pixels.output / ADAPTER_PARTS;
            assert!(!pixels.needs_that_of_adapters(largest) && pixels.needs_that_of_adapters(largest + 1));
            assert!((largest - 1) * plan.pixel.decoding_strips + plan.adapters_bytes() <= plan.available, "{plan}");
        }
        assert!(!PixelLimits::NONE.needs_that_of_adapters(1 << 40));
    }

    /// By what a card of so many GiB leaves free. What does not fit is refused with a hint, or with a limit.
    #[test]
    fn every_size_of_card_has_the_limits_that_its_memory_allows() {
        const MEGAPIXEL: usize = 1024 * 1024;
        // Free GiB; megapixels, megapixels without strips and thousands of tokens that fit with everything on the card, and with
        // the text encoder off it.
        type Fits = Option<(usize, usize, usize)>;
        let cards: [(f64, Fits, Fits); 7] = [
            (15.5, None, None),
            (22.9, None, None),
            (31.0, None, Some((13, 4, 33))),
            (38.9, Some((12, 4, 33)), Some((28, 9, 33))),
            (46.5, Some((26, 9, 33)), Some((42, 15, 33))),
            (78.5, Some((87, 30, 33)), Some((102, 36, 33))),
            (139.5, Some((202, 71, 33)), Some((217, 77, 33))),
        ];
        for (free, resident, offloaded) in cards {
            for (offload, expected) in [(Offload::Nothing, resident), (Offload::Text, offloaded)] {
                let bytes = (free * f64::from(1 << 30)) as usize;
                let plan = MemoryPlan::new(&Configs::flux_dev(), FLUX_DEV, DType::BF16, offload, (bytes, LIMITS));
                let found = plan.as_ref().ok().map(|plan| {
                    let PixelLimits { output, whole, .. } = plan.pixels;
                    (output / MEGAPIXEL, whole / MEGAPIXEL, plan.limits.step_tokens_max / 1000)
                });
                assert_eq!(found, expected, "{free} GiB, {offload:?}: {plan:?}");
            }
        }
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

    /// InstantX' union beside it: 15 blocks.
    #[test]
    fn a_controlnet_takes_memory_and_is_named_where_there_is_none() {
        let weights = WeightBytes { attached: 6_603_913_216, residuals: 15, ..FLUX_DEV };
        let beside = |gib: usize| {
            MemoryPlan::new(&Configs::flux_dev(), weights, DType::BF16, Offload::Nothing, (gib << 30, LIMITS))
        };
        plan(38, Offload::Nothing).expect("fits");
        let error = beside(38).expect_err("too small").to_string();
        assert!(error.contains("of them 6.2 GiB of the ControlNets beside it"), "{error}");
        let (with, without) = (beside(139).expect("fits"), plan(139, Offload::Nothing).expect("fits"));
        assert!(with.to_string().contains("autoencoder 0.2 GiB, ControlNets 6.2 GiB; a step"), "{with}");
        assert_eq!(with.token - without.token, 15 * 3072 * 2);
        assert_eq!(without.available - with.available, weights.attached);
    }

    #[test]
    fn an_error_about_memory_has_a_hint() {
        let error = plan(32, Offload::Nothing).expect_err("too small").to_string();
        assert!(error.contains("32.0 GiB of memory free") && error.contains("`--offload text` saves 8."), "{error}");
        plan(32, Offload::Text).expect("fits");
        let error = plan(24, Offload::Text).expect_err("too small").to_string();
        assert!(error.contains("a quantized file of the model, a larger device"), "{error}");
    }
}
