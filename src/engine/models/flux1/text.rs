//! Prompts to embeddings: CLIP's pooled vector and T5's sequence.

pub(crate) mod cache;
mod clip;
pub(crate) mod styles;
mod t5;
pub(crate) mod tokens;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Configs;
use crate::domain::precision::Precision;
use crate::engine::adapted::AdapterSet;
use crate::engine::checkpoint::Tensors;
use clip::ClipEncoder;
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
    clip: ClipEncoder,
    t5: T5Encoder,
}

impl TextEncoders {
    /// Loads both encoders, in the builders' dtype; T5's linear layers in `precision`, if it quantizes nothing. With `is_streamed`, T5's
    /// blocks are loaded for each prompt.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(
        configs: &Configs,
        clip: VarBuilder<'static>,
        t5: Tensors,
        precision: Precision,
        is_streamed: bool,
    ) -> Result<Self> {
        let clip = ClipEncoder::load(&Tensors::from(clip), &configs.clip)?;
        Ok(Self { clip, t5: T5Encoder::load(t5, &configs.t5, precision, is_streamed)? })
    }

    /// CLIP's hidden state at the first end-of-text token, `[1, width]`.
    ///
    /// `ids` need not be padded: attention is causal, so the end does not see what follows it.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn pooled(&self, ids: &[u32], end_of_text: u32, adapters: &AdapterSet) -> Result<Tensor> {
        let end = ids.iter().position(|&id| id == end_of_text).unwrap_or(ids.len() - 1);
        self.clip.forward(ids, adapters)?.narrow(0, end, 1)?.contiguous()
    }

    /// T5's last hidden state, `[tokens, width]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn sequence(&mut self, ids: &[u32], adapters: &AdapterSet) -> Result<Tensor> {
        self.t5.forward(ids, adapters)
    }
}
