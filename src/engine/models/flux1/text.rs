//! Prompts to embeddings: CLIP's pooled vector and T5's sequence.

pub(crate) mod cache;
mod t5;
pub(crate) mod tokens;

use candle_core::{Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};

use super::config::{ClipConfig, Configs};
use crate::engine::checkpoint::Tensors;
use t5::T5Encoder;

/// The embeddings of a prompt.
#[derive(Debug, Clone)]
pub(crate) struct PromptEmbedding {
    /// CLIP's pooled vector, `[1, width]`.
    pub(crate) pooled: Tensor,
    /// T5's sequence, `[tokens, width]`. Padding is part of it: FLUX has no text mask.
    pub(crate) sequence: Tensor,
}

/// Both text encoders.
pub(crate) struct TextEncoders {
    clip: ClipTextTransformer,
    t5: T5Encoder,
    device: Device,
}

impl TextEncoders {
    /// Loads both encoders, in the builders' dtype; with `is_streamed`, T5's blocks are loaded for each prompt.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(configs: &Configs, clip: &VarBuilder, t5: Tensors, is_streamed: bool) -> Result<Self> {
        let device = clip.device().clone();
        let clip = ClipTextTransformer::new(clip.pp("text_model"), &clip_config(&configs.clip))?;
        Ok(Self { clip, t5: T5Encoder::load(t5, &configs.t5, is_streamed)?, device })
    }

    /// CLIP's hidden state at the first end-of-text token, `[1, width]`.
    ///
    /// `ids` need not be padded: attention is causal, so the end does not see what follows it.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn pooled(&self, ids: &[u32], end_of_text: u32) -> Result<Tensor> {
        let end = ids.iter().position(|&id| id == end_of_text).unwrap_or(ids.len() - 1);
        let batch_of_one = Tensor::new(ids, &self.device)?.unsqueeze(0)?;
        let hidden = self.clip.forward_with_mask(&batch_of_one, usize::MAX)?;
        hidden.i((.., end))
    }

    /// T5's last hidden state, `[tokens, width]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn sequence(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.t5.forward(ids)
    }
}

fn clip_config(config: &ClipConfig) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: config.vocab_size,
        embed_dim: config.hidden_size,
        activation: Activation::QuickGelu,
        intermediate_size: config.intermediate_size,
        max_position_embeddings: config.max_position_embeddings,
        pad_with: None,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        // Of the projection that FLUX does not use.
        projection_dim: config.hidden_size,
    }
}
