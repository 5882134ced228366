//! The configurations of a model's components, as the files of a checkpoint have them, and the rules they must follow. Every
//! dimension of the model comes from here. `checkpoint/config_files.rs` reads them.
//!
//! A field that the file of the transformer, a text encoder or the scheduler lacks has the default of its class in diffusers or
//! transformers, which is not always FLUX.1's.

pub(crate) mod controlnet;
mod text;

use serde::Deserialize;

use crate::domain::conditioning::Conditioning;
use crate::engine::storage::LinearCount;

pub(crate) use text::{ClipConfig, T5Config};

/// The configurations of all components.
#[derive(Debug, Clone)]
pub(crate) struct Configs {
    pub(crate) transformer: TransformerConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) clip: ClipConfig,
    pub(crate) t5: T5Config,
    pub(crate) scheduler: SchedulerConfig,
}

#[cfg(test)]
impl Configs {
    /// Those of FLUX.1-dev, as far as sizes depend on them.
    pub(crate) fn flux_dev() -> Self {
        let (transformer, scheduler) = (TransformerConfig::flux_dev(), SchedulerConfig::flux_dev());
        Self { transformer, vae: VaeConfig::flux(), clip: ClipConfig::large(), t5: T5Config::xxl(), scheduler }
    }
}

/// Maximum layers of one kind; the published model has 38. A wrong number must not fill the memory with names of tensors.
const LAYERS_MAX: usize = 1000;

/// Largest width; the published models stay below 50,000.
const WIDTH_MAX: usize = 1 << 20;

/// `transformer/config.json`, as diffusers' `FluxTransformer2DModel` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct TransformerConfig {
    /// Channels of a token that the model reads: those of its latents, latent channels × 2 × 2, and those that are joined to them.
    pub(crate) in_channels: usize,
    /// Channels of a token that it predicts: those of its latents. Absent or null in files whose model reads nothing else.
    pub(crate) out_channels: Option<usize>,
    /// Blocks with separate text and image streams.
    pub(crate) num_layers: usize,
    /// Blocks on the joint stream.
    pub(crate) num_single_layers: usize,
    pub(crate) attention_head_dim: usize,
    pub(crate) num_attention_heads: usize,
    /// Width of T5's embeddings.
    pub(crate) joint_attention_dim: usize,
    /// Width of CLIP's pooled embedding.
    pub(crate) pooled_projection_dim: usize,
    /// Whether the model takes a guidance value (FLUX.1-dev) or not (FLUX.1-schnell).
    pub(crate) guidance_embeds: bool,
    /// A head's dimensions given to time, row and column. The published file omits it.
    pub(crate) axes_dims_rope: [usize; 3],
}

impl Default for TransformerConfig {
    fn default() -> Self {
        let mut config = Self::flux_dev();
        config.guidance_embeds = false;
        config
    }
}

impl TransformerConfig {
    /// Width of the token streams.
    pub(crate) fn hidden_size(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Width inside the feed-forward parts.
    pub(crate) fn mlp_size(&self) -> usize {
        4 * self.hidden_size()
    }

    /// Channels of a token's latents.
    pub(crate) fn latent_width(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// What it reads beside latents, by its channels. FLUX.1-Kontext reads no channels more than FLUX.1-dev, so it cannot be told
    /// from it. `None` where no model is known that reads so many.
    pub(crate) fn conditioning(&self) -> Option<Conditioning> {
        let latents = self.latent_width();
        let joined = self.in_channels.checked_sub(latents)?;
        let known = [Conditioning::Prompt, Conditioning::Control, Conditioning::Fill];
        known.into_iter().find(|conditioning| conditioning.joined_channels(latents) == joined)
    }

    /// The linear layers that a lossy precision is for: queries, keys and values, what follows attention, and the
    /// feed-forward part, four fifths of a step's arithmetic.
    ///
    /// Not the modulations, which multiply one row a sequence: they are bound by reading weights once a step, and an error in
    /// a shift or a gate is in every token. Nor the embedders and the final layer, which are small and serve every token.
    pub(crate) fn block_linears(&self) -> [LinearCount; 6] {
        let (hidden, mlp) = (self.hidden_size(), self.mlp_size());
        // Text and image have layers of their own.
        let (double, single) = (2 * self.num_layers, self.num_single_layers);
        [
            (double, [3 * hidden, hidden]),
            (double, [hidden, hidden]),
            (double, [mlp, hidden]),
            (double, [hidden, mlp]),
            (single, [3 * hidden + mlp, hidden]),
            (single, [hidden, hidden + mlp]),
        ]
    }

    fn size_rules(&self) -> [Rule; 4] {
        let channels = [self.in_channels, self.latent_width(), self.joint_attention_dim, self.pooled_projection_dim];
        [
            widths(TRANSFORMER, &channels),
            widths(TRANSFORMER, &[self.attention_head_dim, self.num_attention_heads]),
            widths(TRANSFORMER, &self.axes_dims_rope),
            layers(TRANSFORMER, &[self.num_layers, self.num_single_layers]),
        ]
    }

    /// The rules for sizes that it breaks, each with its file.
    pub(crate) fn excesses(&self) -> Vec<(&'static str, String)> {
        broken(self.size_rules())
    }

    /// That of FLUX.1-dev, for `flux1-dev.safetensors`: the single-file layout has no configuration.
    pub(crate) fn flux_dev() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: true,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

/// `vae/config.json`, as diffusers' `AutoencoderKL` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct VaeConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) latent_channels: usize,
    /// Channels per level, from pixels to latents.
    pub(crate) block_out_channels: Vec<usize>,
    pub(crate) layers_per_block: usize,
    pub(crate) norm_num_groups: usize,
    pub(crate) scaling_factor: f64,
    pub(crate) shift_factor: f64,
    #[serde(default = "default_true")]
    pub(crate) mid_block_add_attention: bool,
    #[serde(default = "default_true")]
    pub(crate) use_quant_conv: bool,
    #[serde(default = "default_true")]
    pub(crate) use_post_quant_conv: bool,
}

fn default_true() -> bool {
    true
}

impl VaeConfig {
    /// That of `ae.safetensors`.
    pub(crate) fn flux() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.3611,
            shift_factor: 0.1159,
            mid_block_add_attention: true,
            use_quant_conv: false,
            use_post_quant_conv: false,
        }
    }
}

/// `scheduler/scheduler_config.json`, as diffusers' `FlowMatchEulerDiscreteScheduler` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SchedulerConfig {
    pub(crate) base_image_seq_len: usize,
    pub(crate) base_shift: f64,
    pub(crate) max_image_seq_len: usize,
    pub(crate) max_shift: f64,
    pub(crate) shift: f64,
    pub(crate) use_dynamic_shifting: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self::flux_schnell()
    }
}

impl SchedulerConfig {
    pub(crate) fn flux_dev() -> Self {
        Self {
            base_image_seq_len: 256,
            base_shift: 0.5,
            max_image_seq_len: 4096,
            max_shift: 1.15,
            shift: 3.0,
            use_dynamic_shifting: true,
        }
    }

    /// Of FLUX.1-schnell: the schedule is not shifted.
    pub(crate) fn flux_schnell() -> Self {
        Self { shift: 1.0, use_dynamic_shifting: false, ..Self::flux_dev() }
    }
}

/// The files of the configurations, by their paths in the diffusers layout.
pub(crate) const TRANSFORMER: &str = "transformer/config.json";
pub(crate) const VAE: &str = "vae/config.json";
pub(crate) const CLIP: &str = "text_encoder/config.json";
pub(crate) const T5: &str = "text_encoder_2/config.json";
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";

impl Configs {
    /// The rules that these configurations break: by contradicting one another, or by what this engine does not support. Each
    /// with its file.
    pub(crate) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let excessive = broken(self.size_rules());
        if !excessive.is_empty() {
            // The other rules compute with these sizes.
            return excessive;
        }
        broken([self.transformer_rules(), self.vae_rules(), self.text_rules()].concat())
    }

    fn size_rules(&self) -> Vec<Rule> {
        let Self { transformer, vae, clip, t5, .. } = self;
        let of_others = vec![
            widths(VAE, &vae.block_out_channels),
            widths(VAE, &[vae.latent_channels, vae.norm_num_groups]),
            layers(VAE, &[vae.layers_per_block, vae.block_out_channels.len()]),
            widths(CLIP, &[clip.hidden_size, clip.intermediate_size, clip.num_attention_heads, clip.vocab_size]),
            layers(CLIP, &[clip.num_hidden_layers]),
            // Start, one token, end.
            (
                CLIP,
                (3..=WIDTH_MAX).contains(&clip.max_position_embeddings),
                "max_position_embeddings must be at least 3",
            ),
        ];
        [transformer.size_rules().to_vec(), of_others, t5_size_rules(t5).to_vec()].concat()
    }

    #[rustfmt::skip]
    fn transformer_rules(&self) -> Vec<Rule> {
        let Self { transformer, vae, clip, t5, scheduler } = self;
        let axes = transformer.axes_dims_rope;
        vec![
            (TRANSFORMER, axes.iter().sum::<usize>() == transformer.attention_head_dim, "axes_dims_rope must add up to attention_head_dim"),
            (TRANSFORMER, axes.iter().all(|axis| axis.is_multiple_of(2)), "axes_dims_rope must be even"),
            (TRANSFORMER, transformer.latent_width() == 4 * vae.latent_channels, "out_channels must be four times vae/config.json's latent_channels"),
            (TRANSFORMER, transformer.conditioning().is_some(), CHANNELS),
            (TRANSFORMER, transformer.joint_attention_dim == t5.d_model, "joint_attention_dim must equal text_encoder_2/config.json's d_model"),
            (TRANSFORMER, transformer.pooled_projection_dim == clip.hidden_size, "pooled_projection_dim must equal text_encoder/config.json's hidden_size"),
            (SCHEDULER, scheduler.max_image_seq_len > scheduler.base_image_seq_len, "max_image_seq_len must be above base_image_seq_len"),
        ]
    }

    #[rustfmt::skip]
    fn vae_rules(&self) -> Vec<Rule> {
        let vae = &self.vae;
        let widths_fit_groups = vae.block_out_channels.iter().all(|width| width.is_multiple_of(vae.norm_num_groups));
        vec![
            (VAE, vae.block_out_channels.len() == 4, "block_out_channels must have four levels: FLUX latents are an eighth of the image"),
            (VAE, widths_fit_groups, "every width in block_out_channels must be a multiple of norm_num_groups"),
            (VAE, vae.out_channels == 3 && vae.in_channels == 3, "in_channels and out_channels must be 3 (RGB)"),
            (VAE, vae.scaling_factor.is_normal() && vae.shift_factor.is_finite(), "scaling_factor must be a number other than 0, shift_factor a number"),
            (VAE, vae.mid_block_add_attention, "mid_block_add_attention must be true"),
            (VAE, !vae.use_quant_conv && !vae.use_post_quant_conv, "use_quant_conv and use_post_quant_conv must be false, as in FLUX"),
        ]
    }

    #[rustfmt::skip]
    fn text_rules(&self) -> Vec<Rule> {
        let Self { clip, t5, .. } = self;
        vec![
            (CLIP, clip.hidden_act == "quick_gelu", "hidden_act must be quick_gelu"),
            (CLIP, (clip.layer_norm_eps - 1e-5).abs() < 1e-9, "layer_norm_eps must be 1e-5"),
            (CLIP, clip.hidden_size.is_multiple_of(clip.num_attention_heads), "hidden_size must be a multiple of num_attention_heads"),
            (T5, t5.feed_forward_proj == "gated-gelu", "feed_forward_proj must be gated-gelu"),
        ]
    }
}

/// The rule of the channels that a transformer reads.
pub(crate) const CHANNELS: &str = "in_channels must be those of the latents (64: FLUX.1-dev, -schnell, -Krea, -Kontext), twice as many \
     (128: -Canny, -Depth), or those and 256 of a mask (384: -Fill); 196, as Flex.2 has, is not supported";

/// A file, whether its rule holds, and the rule.
type Rule = (&'static str, bool, &'static str);

fn broken(rules: impl IntoIterator<Item = Rule>) -> Vec<(&'static str, String)> {
    let broken = rules.into_iter().filter(|(_, holds, _)| !holds);
    broken.map(|(path, _, rule)| (path, rule.to_owned())).collect()
}

fn widths(path: &'static str, widths: &[usize]) -> Rule {
    let hold = widths.iter().all(|&width| (1..=WIDTH_MAX).contains(&width));
    (path, hold, "every width must be from 1 to 1048576")
}

fn layers(path: &'static str, layers: &[usize]) -> Rule {
    let hold = layers.iter().all(|&count| count <= LAYERS_MAX);
    (path, hold, "there can be at most 1000 layers of a kind")
}

fn t5_size_rules(t5: &T5Config) -> [Rule; 2] {
    let sizes = [t5.d_model, t5.d_kv, t5.d_ff, t5.num_heads, t5.vocab_size, t5.relative_attention_num_buckets];
    [widths(T5, &sizes), layers(T5, &[t5.num_layers])]
}

/// The rules for sizes that T5's configuration breaks, each with its file.
pub(crate) fn t5_excesses(t5: &T5Config) -> Vec<(&'static str, String)> {
    broken(t5_size_rules(t5))
}
