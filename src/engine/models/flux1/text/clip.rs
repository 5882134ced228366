//! CLIP's text encoder: token ids to hidden states, one of which becomes the pooled vector.
//!
//! Follows `CLIPTextTransformer` in transformers' `modeling_clip.py`. Attention is causal, with its scores in f32.

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::LayerNorm;
use candle_nn::ops::{sigmoid, softmax};

use super::super::config::ClipConfig;
use crate::engine::adapted::{AdapterSet, Changes};
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;

/// What `quick_gelu` multiplies its argument by.
const QUICK_GELU: f64 = 1.702;

/// The encoder.
pub(super) struct ClipEncoder {
    /// `[vocabulary, width]`
    tokens: Tensor,
    /// `[positions, width]`
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    device: Device,
}

impl ClipEncoder {
    /// Loads the weights in the builder's dtype.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(super) fn load(tensors: &Tensors, config: &ClipConfig) -> Result<Self> {
        let tensors = tensors.pp("text_model");
        let (width, embeddings) = (config.hidden_size, tensors.pp("embeddings"));
        Ok(Self {
            tokens: embeddings.get((config.vocab_size, width), "token_embedding.weight")?,
            positions: embeddings.get((config.max_position_embeddings, width), "position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(config, &tensors.pp(format!("encoder.layers.{index}"))))
                .collect::<Result<_>>()?,
            final_norm: layer_norm(config, &tensors.pp("final_layer_norm"))?,
            device: tensors.device().clone(),
        })
    }

    /// The last hidden state of the tokens, `[tokens, width]`, of the encoder as adapters change it.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn forward(&self, ids: &[u32], adapters: &AdapterSet) -> Result<Tensor> {
        let (mask, changes) = (self.causal_mask(ids.len())?, Changes::of([(0..ids.len(), adapters)]));
        let tokens = self.tokens.index_select(&Tensor::new(ids, &self.device)?, 0)?;
        let mut x = (tokens + self.positions.narrow(0, 0, ids.len())?)?;
        for layer in &self.layers {
            x = layer.forward(&x, &mask, &changes)?;
        }
        self.final_norm.forward(&x)
    }

    /// What is added to the scores: 0, or the least number where a key follows its query. `[tokens, tokens]`, f32.
    fn causal_mask(&self, tokens: usize) -> Result<Tensor> {
        let mask = (0..tokens).flat_map(|query| (0..tokens).map(move |key| if key > query { f32::MIN } else { 0.0 }));
        Tensor::from_vec(mask.collect(), (tokens, tokens), &self.device)
    }
}

struct Layer {
    attention_norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    feed_norm: LayerNorm,
    up: Linear,
    down: Linear,
    heads: usize,
}

impl Layer {
    fn load(config: &ClipConfig, tensors: &Tensors) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = |name: &str| Linear::load(width, width, &tensors.pp("self_attn").pp(name));
        Ok(Self {
            key: attention("k_proj")?,
            value: attention("v_proj")?,
            query: attention("q_proj")?,
            out: attention("out_proj")?,
            attention_norm: layer_norm(config, &tensors.pp("layer_norm1"))?,
            up: Linear::load(width, inner, &tensors.pp("mlp.fc1"))?,
            down: Linear::load(inner, width, &tensors.pp("mlp.fc2"))?,
            feed_norm: layer_norm(config, &tensors.pp("layer_norm2"))?,
            heads: config.num_attention_heads,
        })
    }

    /// `x [tokens, width]` -> the same.
    fn forward(&self, x: &Tensor, mask: &Tensor, changes: &Changes) -> Result<Tensor> {
        let x = (x + self.attention(&self.attention_norm.forward(x)?, mask, changes)?)?;
        let inner = self.up.changed(&self.feed_norm.forward(&x)?, changes)?;
        let activated = (&inner * sigmoid(&(&inner * QUICK_GELU)?)?)?;
        x + self.down.changed(&activated, changes)?
    }

    fn attention(&self, x: &Tensor, mask: &Tensor, changes: &Changes) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let head_width = width / self.heads;
        // `[heads, tokens, head width]`
        let by_heads = |states: Tensor| {
            states.reshape((tokens, self.heads, head_width))?.transpose(0, 1)?.contiguous()?.to_dtype(DType::F32)
        };
        let query = self.query.changed(x, changes)?;
        let query = by_heads((query * (head_width as f64).powf(-0.5))?)?;
        let key = by_heads(self.key.changed(x, changes)?)?;
        let value = by_heads(self.value.changed(x, changes)?)?;
        let scores = query.matmul(&key.t()?)?.broadcast_add(mask)?;
        let attended = softmax(&scores, D::Minus1)?.matmul(&value)?.to_dtype(x.dtype())?;
        self.out.changed(&attended.transpose(0, 1)?.contiguous()?.reshape((tokens, width))?, changes)
    }
}

fn layer_norm(config: &ClipConfig, tensors: &Tensors) -> Result<LayerNorm> {
    let vector = |name| tensors.get(config.hidden_size, name);
    Ok(LayerNorm::new(vector("weight")?, vector("bias")?, config.layer_norm_eps))
}
