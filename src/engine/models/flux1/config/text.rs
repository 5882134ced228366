//! The configurations of the text encoders.

use serde::Deserialize;

use crate::engine::storage::LinearCount;

/// `text_encoder/config.json`, as transformers' `CLIPTextModel` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ClipConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self { hidden_size: 512, intermediate_size: 2048, num_attention_heads: 8, ..Self::large() }
    }
}

impl ClipConfig {
    /// That of CLIP ViT-L/14, FLUX.1's first text encoder.
    pub(crate) fn large() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 768,
            intermediate_size: 3072,
            max_position_embeddings: 77,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// `text_encoder_2/config.json`, as transformers' `T5EncoderModel` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct T5Config {
    pub(crate) vocab_size: usize,
    pub(crate) d_model: usize,
    /// Width of a head.
    pub(crate) d_kv: usize,
    /// Width inside the feed-forward parts.
    pub(crate) d_ff: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    pub(crate) relative_attention_num_buckets: usize,
    pub(crate) relative_attention_max_distance: usize,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        let (d_model, d_ff, num_layers, num_heads) = (512, 2048, 6, 8);
        Self { d_model, d_ff, num_layers, num_heads, feed_forward_proj: "relu".to_owned(), ..Self::xxl() }
    }
}

impl T5Config {
    /// That of T5 v1.1 XXL, FLUX.1's second text encoder.
    pub(crate) fn xxl() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10_240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "gated-gelu".to_owned(),
        }
    }

    /// The linear layers of all blocks.
    pub(crate) fn block_linears(&self) -> [LinearCount; 4] {
        let (width, inner, layers) = (self.d_model, self.num_heads * self.d_kv, self.num_layers);
        [
            (layers, [3 * inner, width]),
            (layers, [width, inner]),
            (layers, [2 * self.d_ff, width]),
            (layers, [width, self.d_ff]),
        ]
    }
}
