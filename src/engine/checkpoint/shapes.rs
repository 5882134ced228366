//! Configurations from the shapes of tensors, for files that have none. What shapes do not tell stays as it was.

use super::files::WeightFiles;
use crate::engine::models::flux1::config::controlnet::ControlNetConfig;
use crate::engine::models::flux1::config::{ClipConfig, T5Config, TransformerConfig, VaeConfig};

/// Width of a head in CLIP.
const CLIP_HEAD: usize = 64;

/// The shapes of a component's tensors.
struct Shapes<'a>(&'a WeightFiles);

impl Shapes<'_> {
    /// A dimension of a tensor, if there is such a tensor.
    fn size(&self, name: &str, dimension: usize) -> Option<usize> {
        self.0.entries.get(name)?.info.shape.get(dimension).copied()
    }

    /// The first of several tensors that are there.
    fn first(&self, names: &[&str], dimension: usize) -> Option<usize> {
        names.iter().find_map(|name| self.size(name, dimension))
    }

    /// How many blocks there are of names that begin so, with a number behind it.
    fn count(&self, beginning: &str) -> Option<usize> {
        let numbers =
            self.0.entries.keys().filter_map(|name| name.strip_prefix(beginning)?.split('.').next()?.parse().ok());
        numbers.max().map(|last: usize| last.saturating_add(1))
    }

    fn has(&self, beginning: &str) -> bool {
        self.0.entries.keys().any(|name| name.starts_with(beginning))
    }
}

fn set(field: &mut usize, value: Option<usize>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Channels of a token that the transformer predicts, in either layout.
pub(super) fn predicted(files: &WeightFiles) -> Option<usize> {
    Shapes(files).first(&["final_layer.linear.weight", "proj_out.weight"], 0)
}

/// The transformer's configuration, in either layout.
pub(super) fn transformer(files: &WeightFiles, mut config: TransformerConfig) -> TransformerConfig {
    let shapes = Shapes(files);
    let image = ["img_in.weight", "x_embedder.weight"];
    set(&mut config.in_channels, shapes.first(&image, 1));
    config.out_channels = predicted(files).or(config.out_channels);
    let head = ["double_blocks.0.img_attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight"];
    let head = shapes.first(&head, 0).filter(|&head| head > 0);
    set(&mut config.attention_head_dim, head);
    let hidden = shapes.first(&image, 0);
    set(&mut config.num_attention_heads, hidden.map(|hidden| hidden / config.attention_head_dim.max(1)));
    set(&mut config.joint_attention_dim, shapes.first(&["txt_in.weight", "context_embedder.weight"], 1));
    let pooled = ["vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"];
    set(&mut config.pooled_projection_dim, shapes.first(&pooled, 1));
    set(&mut config.num_layers, shapes.count("double_blocks.").or_else(|| shapes.count("transformer_blocks.")));
    let single = shapes.count("single_blocks.").or_else(|| shapes.count("single_transformer_blocks."));
    set(&mut config.num_single_layers, single);
    config.guidance_embeds = shapes.has("guidance_in.") || shapes.has("time_text_embed.guidance_embedder.");
    config
}

/// A ControlNet's configuration, but for its axes of positions, which are FLUX.1's.
pub(super) fn controlnet(files: &WeightFiles) -> ControlNetConfig {
    // No block is there unless a name says so.
    let without_blocks = TransformerConfig { num_layers: 0, num_single_layers: 0, ..TransformerConfig::flux_dev() };
    let modes = Shapes(files).size("controlnet_mode_embedder.weight", 0);
    let modes = modes.map(|modes| u32::try_from(modes).unwrap_or(u32::MAX));
    ControlNetConfig { trunk: transformer(files, without_blocks), modes }
}

/// The autoencoder's configuration, in either layout.
pub(super) fn vae(files: &WeightFiles, mut config: VaeConfig) -> VaeConfig {
    let shapes = Shapes(files);
    set(&mut config.latent_channels, shapes.size("decoder.conv_in.weight", 1));
    let levels = shapes.count("encoder.down.").or_else(|| shapes.count("encoder.down_blocks."));
    let width = |level: usize| {
        let ours = format!("encoder.down.{level}.block.0.conv1.weight");
        let theirs = format!("encoder.down_blocks.{level}.resnets.0.conv1.weight");
        shapes.first(&[&ours, &theirs], 0)
    };
    // A wrong number in a name must not make a long list.
    let widths: Option<Vec<usize>> =
        levels.filter(|&levels| levels <= 8).and_then(|levels| (0..levels).map(width).collect());
    config.block_out_channels = widths.unwrap_or(config.block_out_channels);
    let blocks = shapes.count("encoder.down.0.block.").or_else(|| shapes.count("encoder.down_blocks.0.resnets."));
    set(&mut config.layers_per_block, blocks);
    config
}

/// CLIP's configuration.
pub(super) fn clip(files: &WeightFiles, mut config: ClipConfig) -> ClipConfig {
    let (shapes, known_width) = (Shapes(files), config.hidden_size);
    let token = "text_model.embeddings.token_embedding.weight";
    set(&mut config.vocab_size, shapes.size(token, 0));
    set(&mut config.hidden_size, shapes.size(token, 1));
    set(&mut config.max_position_embeddings, shapes.size("text_model.embeddings.position_embedding.weight", 0));
    set(&mut config.intermediate_size, shapes.size("text_model.encoder.layers.0.mlp.fc1.weight", 0));
    set(&mut config.num_hidden_layers, shapes.count("text_model.encoder.layers."));
    if config.hidden_size != known_width {
        config.num_attention_heads = (config.hidden_size / CLIP_HEAD).max(1);
    }
    config
}

/// T5's configuration.
pub(super) fn t5(files: &WeightFiles, mut config: T5Config) -> T5Config {
    let shapes = Shapes(files);
    set(&mut config.vocab_size, shapes.size("shared.weight", 0));
    set(&mut config.d_model, shapes.size("shared.weight", 1));
    set(&mut config.d_ff, shapes.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0));
    set(&mut config.num_layers, shapes.count("encoder.block."));
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    set(&mut config.relative_attention_num_buckets, shapes.size(bias, 0));
    set(&mut config.num_heads, shapes.size(bias, 1));
    let inner = shapes.size("encoder.block.0.layer.0.SelfAttention.q.weight", 0);
    set(&mut config.d_kv, inner.map(|inner| inner / config.num_heads.max(1)));
    config
}
