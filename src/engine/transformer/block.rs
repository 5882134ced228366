//! The two kinds of transformer block.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Stream;
use super::linear::{Linear, Mlp};
use crate::engine::loader::config::TransformerConfig;
use crate::engine::ops::activation::beside_gelu_tanh;
use crate::engine::ops::attention::{attention, attention_into};
use crate::engine::ops::linear::Product;
use crate::engine::ops::modulation::{gated_residual, modulated_layer_norm};
use crate::engine::ops::rope::{Rotary, normalize_and_rotate};
use crate::engine::ops::{Segments, unwritten};

/// Shift, scale and gate of one modulated part, `[sequences, hidden]` each.
struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// The `index`-th triple of a modulation layer's output.
    fn of(output: &Tensor, index: usize, hidden: usize) -> Result<Self> {
        let part = |offset: usize| output.narrow(1, (3 * index + offset) * hidden, hidden);
        Ok(Self { shift: part(0)?, scale: part(1)?, gate: part(2)? })
    }

    fn normalize(&self, x: &Tensor, segments: &Segments) -> Result<Tensor> {
        modulated_layer_norm(x, &self.shift, &self.scale, segments)
    }

    fn add(&self, x: &Tensor, y: &Product, segments: &Segments) -> Result<Tensor> {
        gated_residual(x, y, &self.gate, segments)
    }
}

/// Scales of the query and key normalisation, `[head width]` each.
struct HeadNorm {
    query: Tensor,
    key: Tensor,
}

impl HeadNorm {
    fn load(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.attention_head_dim;
        Ok(Self { query: vb.get(width, "query_norm.scale")?, key: vb.get(width, "key_norm.scale")? })
    }

    fn apply(&self, qkv: &Product, rotary: Option<&Rotary>) -> Result<Tensor> {
        normalize_and_rotate(qkv, &self.query, &self.key, rotary)
    }
}

/// One stream's half of a double block.
struct Half {
    modulation: Linear,
    qkv: Linear,
    norm: HeadNorm,
    out: Linear,
    mlp: Mlp,
    hidden: usize,
}

impl Half {
    fn load(config: &TransformerConfig, stream: &str, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size();
        let name = |rest: &str| vb.pp(format!("{stream}_{rest}"));
        Ok(Self {
            modulation: Linear::load(hidden, 6 * hidden, &name("mod.lin"))?,
            qkv: Linear::load(hidden, 3 * hidden, &name("attn.qkv"))?,
            norm: HeadNorm::load(config, &name("attn.norm"))?,
            out: Linear::load(hidden, hidden, &name("attn.proj"))?,
            mlp: Mlp::load(hidden, config.mlp_size(), hidden, ["0", "2"], &name("mlp"))?,
            hidden,
        })
    }

    /// Both modulations: before attention, before the feed-forward part.
    fn modulations(&self, condition: &Tensor) -> Result<(Modulation, Modulation)> {
        let output = self.modulation.forward(condition)?;
        Ok((Modulation::of(&output, 0, self.hidden)?, Modulation::of(&output, 1, self.hidden)?))
    }

    fn finish(
        &self,
        x: &Tensor,
        attended: &Tensor,
        modulations: &(Modulation, Modulation),
        segments: &Segments,
    ) -> Result<Tensor> {
        let (first, second) = modulations;
        let x = first.add(x, &self.out.product(attended)?, segments)?;
        let fed = self.mlp.gelu_product(&second.normalize(&x, segments)?)?;
        second.add(&x, &fed, segments)
    }
}

/// Text and image streams apart, attending together.
pub(super) struct DoubleBlock {
    image: Half,
    text: Half,
    heads: usize,
}

impl DoubleBlock {
    pub(super) fn load(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            image: Half::load(config, "img", vb)?,
            text: Half::load(config, "txt", vb)?,
            heads: config.num_attention_heads,
        })
    }

    /// `text [text tokens, hidden]`, `image [image tokens, hidden]` -> the same.
    pub(super) fn forward(&self, text: &Tensor, image: &Tensor, stream: &Stream) -> Result<(Tensor, Tensor)> {
        let (image_segments, text_segments) = (&stream.image_segments, &stream.text_segments);
        let image_modulations = self.image.modulations(&stream.condition)?;
        let text_modulations = self.text.modulations(&stream.condition)?;
        let image_qkv = self.image.qkv.product(&image_modulations.0.normalize(image, image_segments)?)?;
        let text_qkv = self.text.qkv.product(&text_modulations.0.normalize(text, text_segments)?)?;
        let image_qkv = self.image.norm.apply(&image_qkv, Some(&stream.image_rotary))?;
        // Text stands at position zero, where the rotation is none.
        let text_qkv = self.text.norm.apply(&text_qkv, None)?;
        let joint = stream.join(&text_qkv, &image_qkv)?;
        let attended = attention(&joint, self.heads, &stream.joint_segments)?;
        let (text_attended, image_attended) = stream.split(&attended)?;
        let image = self.image.finish(image, &image_attended, &image_modulations, image_segments)?;
        let text = self.text.finish(text, &text_attended, &text_modulations, text_segments)?;
        Ok((text, image))
    }
}

/// The joint stream, attention and feed-forward side by side.
pub(super) struct SingleBlock {
    modulation: Linear,
    /// Queries, keys and values, and the first half of the feed-forward part.
    linear1: Linear,
    /// The two, each by itself: parts of the same weights.
    qkv: Linear,
    feed: Linear,
    linear2: Linear,
    norm: HeadNorm,
    heads: usize,
    hidden: usize,
    mlp: usize,
}

impl SingleBlock {
    pub(super) fn load(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size(), config.mlp_size());
        let linear1 = Linear::load(hidden, 3 * hidden + mlp, &vb.pp("linear1"))?;
        Ok(Self {
            modulation: Linear::load(hidden, 3 * hidden, &vb.pp("modulation.lin"))?,
            qkv: linear1.part(0, 3 * hidden)?,
            feed: linear1.part(3 * hidden, mlp)?,
            linear1,
            linear2: Linear::load(hidden + mlp, hidden, &vb.pp("linear2"))?,
            norm: HeadNorm::load(config, &vb.pp("norm"))?,
            heads: config.num_attention_heads,
            hidden,
            mlp,
        })
    }

    /// `joint [tokens, hidden]` -> the same.
    pub(super) fn forward(&self, joint: &Tensor, stream: &Stream) -> Result<Tensor> {
        let segments = &stream.joint_segments;
        let modulation = Modulation::of(&self.modulation.forward(&stream.condition)?, 0, self.hidden)?;
        let x = modulation.normalize(joint, segments)?;
        let inner = if joint.device().is_cuda() { self.inner_in_place(&x, stream) } else { self.inner(&x, stream) }?;
        modulation.add(joint, &self.linear2.product(&inner)?, segments)
    }

    /// Attention and, beside it, the feed-forward half: `x [tokens, hidden]` -> `[tokens, hidden + mlp]`.
    fn inner(&self, x: &Tensor, stream: &Stream) -> Result<Tensor> {
        let wide = self.linear1.product(x)?;
        let qkv = wide.narrow(0, 3 * self.hidden)?;
        let qkv = self.norm.apply(&qkv, Some(&stream.joint_rotary))?;
        let attended = attention(&qkv, self.heads, &stream.joint_segments)?;
        beside_gelu_tanh(&attended, &wide.narrow(3 * self.hidden, self.mlp)?)
    }

    /// The same, with nothing put side by side afterwards: GELU in the product's epilogue, and both write to where the
    /// next product reads.
    fn inner_in_place(&self, x: &Tensor, stream: &Stream) -> Result<Tensor> {
        let qkv = self.norm.apply(&self.qkv.product(x)?, Some(&stream.joint_rotary))?;
        let inner = unwritten(x.dim(0)?, self.hidden + self.mlp, x)?;
        attention_into(&inner, 0, &qkv, self.heads, &stream.joint_segments)?;
        self.feed.gelu_into(&inner, self.hidden, x)?;
        Ok(inner)
    }
}
