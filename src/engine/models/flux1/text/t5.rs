//! T5's encoder: token ids to the sequence that the transformer attends to.
//!
//! Follows `T5Stack` without a decoder in transformers' `modeling_t5.py` ("T5 v1.1": gated GELU, unscaled attention, one
//! relative position bias for all blocks, no mask). Weights stay on the device, or are copied to it block by block.

use candle_core::{DType, Device, Result, Tensor};

use super::super::config::T5Config;
use crate::domain::precision::Precision;
use crate::engine::adapted::{AdapterSet, Changes};
use crate::engine::checkpoint::{Matrix, Tensors};
use crate::engine::linear::Linear;
use crate::engine::ops::attention::biased_attention;
use crate::engine::ops::text::{gated_gelu, rms_norm};
use crate::engine::storage::AsStored;

/// The encoder.
pub(crate) struct T5Encoder {
    config: T5Config,
    /// `[vocabulary, width]`, in the host's memory: a prompt needs a few of its rows.
    embedding: Embedding,
    /// The bias that each head adds to a score, by bucket of distances: `[buckets][heads]`.
    bias_table: Vec<Vec<f32>>,
    /// The bias `[heads, 2 × tokens]` of the last sequence; the next is nearly always as long.
    bias: Option<Tensor>,
    blocks: Blocks,
    final_norm: RmsNorm,
    device: Device,
    dtype: DType,
}

enum Blocks {
    Resident(Vec<Block>),
    /// Loaded for each prompt in a precision, one after the other: the device holds one at a time.
    Streamed(Precision, Tensors),
}

/// The table of embeddings.
enum Embedding {
    Full(Tensor),
    Stored(AsStored),
}

impl From<Matrix> for Embedding {
    fn from(matrix: Matrix) -> Self {
        match matrix {
            Matrix::Full(table) => Self::Full(table),
            Matrix::Stored(table) => Self::Stored(AsStored::Host(table)),
        }
    }
}

impl Embedding {
    /// The rows of tokens, `[tokens, width]`.
    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Full(table) => table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0),
            Self::Stored(table) => table.rows_at(ids),
        }
    }
}

impl T5Encoder {
    /// Loads the weights in the builder's dtype, and those of linear layers in `precision`, if it quantizes nothing; with `is_streamed`,
    /// those of the blocks for each prompt.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn load(tensors: Tensors, config: &T5Config, precision: Precision, is_streamed: bool) -> Result<Self> {
        let (device, dtype) = (tensors.device().clone(), tensors.dtype());
        let shared = tensors.pp("shared").on_host();
        let embedding = shared.matrix([config.vocab_size, config.d_model], "weight")?.into();
        let bias_table = tensors.pp("encoder.block.0.layer.0.SelfAttention.relative_attention_bias").on_host();
        let bias_table = bias_table.get((config.relative_attention_num_buckets, config.num_heads), "weight")?;
        let final_norm = RmsNorm::load(config, &tensors.pp("encoder.final_layer_norm"))?;
        let blocks = if is_streamed {
            Blocks::Streamed(precision, tensors)
        } else {
            Blocks::Resident(
                (0..config.num_layers)
                    .map(|index| Block::load(config, precision, &tensors, index))
                    .collect::<Result<_>>()?,
            )
        };
        Ok(Self {
            config: config.clone(),
            embedding,
            bias_table: bias_table.to_dtype(DType::F32)?.to_vec2()?,
            bias: None,
            blocks,
            final_norm,
            device,
            dtype,
        })
    }

    /// The last hidden state of the tokens, `[tokens, width]`, of the encoder as adapters change it.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn forward(&mut self, ids: &[u32], adapters: &AdapterSet) -> Result<Tensor> {
        let (bias, changes) = (self.bias(ids.len())?, Changes::of([(0..ids.len(), adapters)]));
        let mut x = self.embedding.rows(ids)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        match &self.blocks {
            Blocks::Resident(blocks) => {
                for block in blocks {
                    x = block.forward(&x, &bias, &changes)?;
                }
            }
            Blocks::Streamed(precision, tensors) => {
                for index in 0..self.config.num_layers {
                    x = Block::load(&self.config, *precision, tensors, index)?.forward(&x, &bias, &changes)?;
                }
            }
        }
        self.final_norm.forward(&x)
    }

    /// The bias of the scores of `tokens` tokens, by how far the key stands behind the query: `[heads, 2 × tokens]`, f32,
    /// from `tokens - 1` before it to as many behind it. The last value is unused.
    fn bias(&mut self, tokens: usize) -> Result<Tensor> {
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.dims()[1] == 2 * tokens) {
            return Ok(bias.clone());
        }
        let (buckets, heads) = (self.config.relative_attention_num_buckets, self.config.num_heads);
        let distance_max = self.config.relative_attention_max_distance;
        let mut values = vec![0.0; heads * 2 * tokens];
        for (index, offset) in (1 - tokens as i64..tokens as i64).enumerate() {
            for (head, &value) in self.bias_table[bucket(offset, buckets, distance_max)].iter().enumerate() {
                values[head * 2 * tokens + index] = value;
            }
        }
        let bias = Tensor::from_vec(values, (heads, 2 * tokens), &self.device)?;
        self.bias = Some(bias.clone());
        Ok(bias)
    }
}

/// The row of the bias table for a key `offset` tokens behind (or, negative, before) a query. One half of the buckets is for
/// each direction; near ones hold one distance each, further ones grow by powers up to `distance_max`, and the last holds
/// all beyond.
fn bucket(offset: i64, buckets: usize, distance_max: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = offset.unsigned_abs() as usize;
    let bucket = if distance < exact {
        distance
    } else {
        let power = (distance as f32 / exact as f32).ln() / (distance_max as f64 / exact as f64).ln() as f32;
        (exact + (power * (half - exact) as f32) as usize).min(half - 1)
    };
    if offset > 0 { half + bucket } else { bucket }
}

struct Block {
    attention_norm: RmsNorm,
    /// Of queries, keys and values.
    qkv: Linear,
    attention_out: Linear,
    feed_norm: RmsNorm,
    /// The half of the feed-forward layer that goes through GELU, and the one that it is multiplied with.
    gate_and_up: Linear,
    down: Linear,
    heads: usize,
}

impl Block {
    fn load(config: &T5Config, precision: Precision, tensors: &Tensors, index: usize) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let tensors = tensors.pp(format!("encoder.block.{index}.layer"));
        let (attention, feed) = (tensors.pp("0.SelfAttention"), tensors.pp("1.DenseReluDense"));
        let joined =
            |names: &[&str], shape, tensors: &Tensors| Linear::load_joined_in(precision, names, shape, tensors);
        Ok(Self {
            attention_norm: RmsNorm::load(config, &tensors.pp("0.layer_norm"))?,
            qkv: joined(&["q", "k", "v"], [inner, width], &attention)?,
            attention_out: joined(&["o"], [width, inner], &attention)?,
            feed_norm: RmsNorm::load(config, &tensors.pp("1.layer_norm"))?,
            gate_and_up: joined(&["wi_0", "wi_1"], [config.d_ff, width], &feed)?,
            down: joined(&["wo"], [width, config.d_ff], &feed)?,
            heads: config.num_heads,
        })
    }

    /// `x [tokens, width]` -> the same.
    fn forward(&self, x: &Tensor, bias: &Tensor, changes: &Changes) -> Result<Tensor> {
        let qkv = self.qkv.changed(&self.attention_norm.forward(x)?, changes)?;
        // T5 does not scale its scores: its weights account for it.
        let attended = biased_attention(&qkv, self.heads, bias)?;
        let x = (x + self.attention_out.changed(&attended, changes)?)?;
        let gated = gated_gelu(&self.gate_and_up.changed(&self.feed_norm.forward(&x)?, changes)?)?;
        x + self.down.changed(&gated, changes)?
    }
}

/// Scale without mean.
struct RmsNorm {
    scale: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    fn load(config: &T5Config, tensors: &Tensors) -> Result<Self> {
        Ok(Self { scale: tensors.get(config.d_model, "weight")?, epsilon: config.layer_norm_epsilon })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.scale, self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `_relative_position_bucket` with 32 buckets up to a distance of 128.
    #[test]
    fn distances_go_to_the_buckets_of_transformers() {
        let of = |offset| bucket(offset, 32, 128);
        assert_eq!([0, -1, -7, -8, -11, -12, -15, -16].map(of), [0, 1, 7, 8, 8, 9, 9, 10]);
        assert_eq!([1, 7, 8, 90, 91, 127, 128, 511].map(of), [17, 23, 24, 30, 31, 31, 31, 31]);
        assert_eq!([-90, -91, -511].map(of), [14, 15, 15]);
    }
}
