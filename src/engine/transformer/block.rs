//! The two kinds of transformer block.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Stream;
use super::block_linear::{BlockLinear, FeedForward};
use super::linear::Linear;
use super::modulation::{HALF_PARTS, Modulated, Modulation, Modulations, SINGLE_PARTS};
use crate::domain::precision::Precision;
use crate::engine::loader::config::TransformerConfig;
use crate::engine::ops::activation::beside_gelu_tanh;
use crate::engine::ops::attention::{attention, attention_into};
use crate::engine::ops::linear::Product;
use crate::engine::ops::rope::{Rotary, normalize_and_rotate, normalize_and_rotate_into};
use crate::engine::ops::{Places, Segments, unwritten};

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

    fn apply_into(&self, joint: &Tensor, places: &Places, qkv: &Product, rotary: Option<&Rotary>) -> Result<()> {
        normalize_and_rotate_into(joint, places, qkv, [&self.query, &self.key], rotary)
    }
}

/// One stream's half of a double block.
struct Half {
    /// The first part of its modulation.
    modulation: usize,
    qkv: BlockLinear,
    norm: HeadNorm,
    out: BlockLinear,
    mlp: FeedForward,
}

impl Half {
    fn load(
        config: &TransformerConfig,
        stream: &str,
        precision: Precision,
        modulations: &mut Modulations,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let hidden = config.hidden_size();
        let name = |rest: &str| vb.pp(format!("{stream}_{rest}"));
        Ok(Self {
            modulation: modulations.take(HALF_PARTS, &name("mod.lin"))?,
            qkv: BlockLinear::load(hidden, 3 * hidden, precision, &name("attn.qkv"))?,
            norm: HeadNorm::load(config, &name("attn.norm"))?,
            out: BlockLinear::load(hidden, hidden, precision, &name("attn.proj"))?,
            mlp: FeedForward::load(hidden, config.mlp_size(), precision, &name("mlp"))?,
        })
    }

    /// Both modulations: before attention, before the feed-forward part.
    fn modulations(&self, modulated: &Modulated) -> Result<(Modulation, Modulation)> {
        Ok((modulated.triple(self.modulation)?, modulated.triple(self.modulation + 3)?))
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
        let fed = self.mlp.normed_product(&x, second, segments)?;
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
    /// Its modulation goes into `modulations`.
    pub(super) fn load(
        config: &TransformerConfig,
        precision: Precision,
        modulations: &mut Modulations,
        vb: &VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            image: Half::load(config, "img", precision, modulations, vb)?,
            text: Half::load(config, "txt", precision, modulations, vb)?,
            heads: config.num_attention_heads,
        })
    }

    /// `text [text tokens, hidden]`, `image [image tokens, hidden]` -> the same.
    pub(super) fn forward(&self, text: &Tensor, image: &Tensor, stream: &Stream) -> Result<(Tensor, Tensor)> {
        let (image_segments, text_segments) = (&stream.image_segments, &stream.text_segments);
        let image_modulations = self.image.modulations(&stream.modulated)?;
        let text_modulations = self.text.modulations(&stream.modulated)?;
        let image_qkv = self.image.qkv.normed_product(image, &image_modulations.0, image_segments)?;
        let text_qkv = self.text.qkv.normed_product(text, &text_modulations.0, text_segments)?;
        let joint = unwritten(stream.joint_segments.rows(), 3 * image.dim(1)?, image)?;
        self.image.norm.apply_into(&joint, &stream.image_places, &image_qkv, Some(&stream.image_rotary))?;
        // Text stands at position zero, where the rotation is none.
        self.text.norm.apply_into(&joint, &stream.text_places, &text_qkv, None)?;
        let attended = attention(&joint, self.heads, &stream.joint_segments)?;
        let (text_attended, image_attended) = stream.split(&attended)?;
        let image = self.image.finish(image, &image_attended, &image_modulations, image_segments)?;
        let text = self.text.finish(text, &text_attended, &text_modulations, text_segments)?;
        Ok((text, image))
    }
}

/// The joint stream, attention and feed-forward side by side.
pub(super) struct SingleBlock {
    /// The first part of its modulation.
    modulation: usize,
    /// Queries, keys and values, and the first half of the feed-forward part.
    linear1: BlockLinear,
    /// The two, each by itself: parts of the same weights. Only in full.
    parts: Option<[Linear; 2]>,
    linear2: BlockLinear,
    norm: HeadNorm,
    heads: usize,
    hidden: usize,
    mlp: usize,
}

impl SingleBlock {
    /// Its modulation goes into `modulations`.
    pub(super) fn load(
        config: &TransformerConfig,
        precision: Precision,
        modulations: &mut Modulations,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size(), config.mlp_size());
        let modulation = modulations.take(SINGLE_PARTS, &vb.pp("modulation.lin"))?;
        let linear1 = BlockLinear::load(hidden, 3 * hidden + mlp, precision, &vb.pp("linear1"))?;
        let parts =
            |whole: &Linear| -> Result<[Linear; 2]> { Ok([whole.part(0, 3 * hidden)?, whole.part(3 * hidden, mlp)?]) };
        Ok(Self {
            modulation,
            parts: linear1.in_full().map(parts).transpose()?,
            linear1,
            linear2: BlockLinear::load(hidden + mlp, hidden, precision, &vb.pp("linear2"))?,
            norm: HeadNorm::load(config, &vb.pp("norm"))?,
            heads: config.num_attention_heads,
            hidden,
            mlp,
        })
    }

    /// `joint [tokens, hidden]` -> the same.
    pub(super) fn forward(&self, joint: &Tensor, stream: &Stream) -> Result<Tensor> {
        let segments = &stream.joint_segments;
        let modulation = stream.modulated.triple(self.modulation)?;
        let Some(parts) = &self.parts else {
            return modulation.add(joint, &self.rounded(joint, &modulation, stream)?, segments);
        };
        let x = modulation.normalize(joint, segments)?;
        let in_place = joint.device().is_cuda();
        let inner = if in_place { self.inner_in_place(parts, &x, stream) } else { self.inner(&x, stream) }?;
        modulation.add(joint, &self.linear2.product(&inner)?, segments)
    }

    /// All of it in eight bits: what a product reads is rounded where it is computed.
    fn rounded(&self, joint: &Tensor, modulation: &Modulation, stream: &Stream) -> Result<Product<'_>> {
        let wide = self.linear1.normed_product(joint, modulation, &stream.joint_segments)?;
        let qkv = self.norm.apply(&wide.narrow(0, 3 * self.hidden)?, Some(&stream.joint_rotary))?;
        let attended = attention(&qkv, self.heads, &stream.joint_segments)?;
        self.linear2.gelu_product(Some(&attended), &wide.narrow(3 * self.hidden, self.mlp)?)
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
    fn inner_in_place(&self, [qkv, feed]: &[Linear; 2], x: &Tensor, stream: &Stream) -> Result<Tensor> {
        let qkv = self.norm.apply(&qkv.product(x)?, Some(&stream.joint_rotary))?;
        let inner = unwritten(x.dim(0)?, self.hidden + self.mlp, x)?;
        attention_into(&inner, 0, &qkv, self.heads, &stream.joint_segments)?;
        feed.gelu_into(&inner, self.hidden, x)?;
        Ok(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::noise::standard_normal;
    use candle_core::{DType, Device};
    use std::collections::HashMap;

    /// The two ways through a single block's inside.
    #[test]
    fn what_is_written_in_place_is_what_is_put_side_by_side() {
        let config = serde_json::json!({
            "in_channels": 4, "num_layers": 0, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8, "guidance_embeds": false,
            "axes_dims_rope": [4, 6, 6]
        });
        let config: TransformerConfig = serde_json::from_value(config).expect("a configuration");
        let random = |seed, shape: &[usize]| {
            Tensor::from_vec(standard_normal(seed, 0, shape.iter().product()), shape, &Device::Cpu).expect("random")
        };
        let tensors = [
            ("modulation.lin.weight", vec![96, 32]),
            ("modulation.lin.bias", vec![96]),
            ("linear1.weight", vec![224, 32]),
            ("linear1.bias", vec![224]),
            ("linear2.weight", vec![32, 160]),
            ("linear2.bias", vec![32]),
            ("norm.query_norm.scale", vec![16]),
            ("norm.key_norm.scale", vec![16]),
        ];
        let tensors: HashMap<String, Tensor> =
            (0..).zip(tensors).map(|(seed, (name, shape))| (name.to_owned(), random(seed, &shape))).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let mut modulations = Modulations::new(&config, &vb).expect("room");
        let block = SingleBlock::load(&config, Precision::Full, &mut modulations, &vb).expect("loads");
        let image_rotary = Rotary::of_image(3, 4, config.axes_dims_rope, 10_000.0, &Device::Cpu).expect("tables");
        let (none, all) = (Segments::from_lengths([0]), Segments::from_lengths([12]));
        let stream = Stream {
            image_places: Places::new(&all, [0]),
            text_places: Places::new(&none, [0]),
            image_segments: all.clone(),
            text_segments: none,
            joint_segments: all,
            joint_rotary: image_rotary.clone(),
            image_rotary,
            modulated: modulations.forward(&random(10, &[1, 32])).expect("modulates"),
        };
        let x = random(11, &[12, 32]);
        let apart = block.inner(&x, &stream).expect("apart");
        let in_place = block.inner_in_place(block.parts.as_ref().expect("in full"), &x, &stream).expect("in place");
        let largest: f32 = (apart - in_place).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
        assert!(largest < 1e-5, "{largest:e}");
    }
}
