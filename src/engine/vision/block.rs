//! The block of a vision transformer, as SigLIP and DINOv2 have it.

use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Module as _};

use super::weights::{LAYERS_MAX, Reader, WIDTH_MAX, Wanted};
use crate::engine::linear::Linear;
use crate::engine::ops::Segments;
use crate::engine::ops::activation::gelu_tanh;
use crate::engine::ops::attention::attention;

/// What is between the two layers of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU itself.
    Gelu,
}

/// The sizes of a stack of blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BlockSizes {
    pub(super) width: usize,
    /// Width inside the feed-forward parts.
    pub(super) inner: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    /// Of layer norms.
    pub(super) epsilon: f64,
    pub(super) activation: Activation,
    /// Whether what a part adds is scaled, channel by channel.
    pub(super) is_scaled: bool,
}

/// The names of one block's modules in a file.
#[derive(Debug, Clone)]
pub(super) struct BlockNames {
    pub(super) attention_norm: String,
    /// Queries, keys and values: three modules, or one.
    pub(super) qkv: Vec<String>,
    pub(super) attention_out: String,
    /// Tensors, not modules; where there are scales.
    pub(super) scales: Option<[String; 2]>,
    pub(super) feed_norm: String,
    pub(super) up: String,
    pub(super) down: String,
}

impl BlockSizes {
    /// What is wrong with the sizes, if anything.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let is_width = |width: usize| (1..=WIDTH_MAX).contains(&width);
        if !is_width(self.width) || !is_width(self.inner) || !is_width(self.heads) {
            Some("every width must be from 1 to 65536")
        } else if self.layers > LAYERS_MAX {
            Some("there can be at most 1000 layers")
        } else if !self.width.is_multiple_of(self.heads) {
            Some("the width must be a multiple of the number of attention heads")
        } else {
            None
        }
    }

    /// The tensors of all blocks, by their names in a file.
    pub(super) fn wanted(&self, names: impl Fn(usize) -> BlockNames) -> Vec<Wanted> {
        (0..self.layers).flat_map(|index| self.wanted_of(index, &names(index))).collect()
    }

    fn wanted_of(&self, index: usize, names: &BlockNames) -> Vec<Wanted> {
        let (width, inner) = (self.width, self.inner);
        let modules: [(&str, &[String], &[usize]); 6] = [
            ("attention_norm", std::slice::from_ref(&names.attention_norm), &[width]),
            ("qkv", &names.qkv, &[3 * width, width]),
            ("attention_out", std::slice::from_ref(&names.attention_out), &[width, width]),
            ("feed_norm", std::slice::from_ref(&names.feed_norm), &[width]),
            ("up", std::slice::from_ref(&names.up), &[inner, width]),
            ("down", std::slice::from_ref(&names.down), &[width, inner]),
        ];
        let modules =
            modules.into_iter().flat_map(|(module, parts, shape)| Wanted::module(&own(index, module), parts, shape));
        let scales = names.scales.iter().flat_map(|[attention, feed]| {
            [("attention_scale", attention), ("feed_scale", feed)]
                .map(|(name, part)| Wanted::tensor(own(index, name), part.clone(), &[width]))
        });
        modules.chain(scales).collect()
    }

    /// Reads all blocks.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(super) fn load(&self, reader: Reader) -> Result<Vec<Block>> {
        (0..self.layers).map(|index| self.load_block(index, reader)).collect()
    }

    fn load_block(&self, index: usize, reader: Reader) -> Result<Block> {
        let linear = |module: &str| reader.linear(&own(index, module));
        let norm = |module: &str| reader.norm(&own(index, module), self.epsilon);
        let scale = |name: &str| self.is_scaled.then(|| reader.tensor(&own(index, name))).transpose();
        Ok(Block {
            attention_norm: norm("attention_norm")?,
            qkv: linear("qkv")?,
            attention_out: linear("attention_out")?,
            attention_scale: scale("attention_scale")?,
            feed_norm: norm("feed_norm")?,
            up: linear("up")?,
            activation: self.activation,
            down: linear("down")?,
            feed_scale: scale("feed_scale")?,
            heads: self.heads,
        })
    }
}

/// The model's own name of a block's module.
fn own(index: usize, module: &str) -> String {
    format!("blocks.{index}.{module}")
}

/// Attention over all tokens, and a feed-forward part, each behind a layer norm and added to its input.
pub(super) struct Block {
    attention_norm: LayerNorm,
    qkv: Linear,
    attention_out: Linear,
    attention_scale: Option<Tensor>,
    feed_norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    feed_scale: Option<Tensor>,
    heads: usize,
}

impl Block {
    /// `x [tokens, width]` -> the same.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let segments = Segments::from_lengths([x.dim(0)?]);
        let qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        let attended = self.attention_out.forward(&attention(&qkv, self.heads, &segments)?)?;
        let x = (x + scaled(attended, self.attention_scale.as_ref())?)?;
        let inner = self.up.forward(&self.feed_norm.forward(&x)?)?;
        let activated = match self.activation {
            Activation::GeluTanh => gelu_tanh(&inner.into())?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        x + scaled(self.down.forward(&activated)?, self.feed_scale.as_ref())?
    }
}

fn scaled(added: Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    match scale {
        Some(scale) => added.broadcast_mul(scale),
        None => Ok(added),
    }
}
