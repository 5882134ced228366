//! The two kinds of transformer block.

use candle_core::{Result, Tensor};

use super::super::config::TransformerConfig;
use super::feed_forward::FeedForward;
use super::head_norm::HeadNorm;
use super::modulation::{HALF_PARTS, Modulated, Modulation, ModulationsLoader, SINGLE_PARTS};
use super::stream::Stream;
use crate::domain::precision::Precision;
use crate::engine::adapted::Changes;
use crate::engine::checkpoint::Tensors;
use crate::engine::linear::Linear;
use crate::engine::ops::attention::{attention, attention_into, rounded_attention};
use crate::engine::ops::matrix_product::MatrixProduct;
use crate::engine::ops::{Segments, unwritten};
use crate::engine::storage::Input;

/// Attention in a precision.
fn attention_in(precision: Precision, qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    match precision {
        Precision::Bf16 => rounded_attention(qkv, heads, segments),
        Precision::Full | Precision::Fp8 => attention(qkv, heads, segments),
    }
}

/// One stream's half of a double block.
struct Half {
    /// The first part of its modulation.
    modulation: usize,
    qkv: Linear,
    norm: HeadNorm,
    out: Linear,
    mlp: FeedForward,
}

impl Half {
    fn load(
        config: &TransformerConfig,
        stream: &str,
        precision: Precision,
        modulations: &mut ModulationsLoader,
        vb: &Tensors,
    ) -> Result<Self> {
        let hidden = config.hidden_size();
        let name = |rest: &str| vb.pp(format!("{stream}_{rest}"));
        Ok(Self {
            modulation: modulations.load(HALF_PARTS, &name("mod.lin"))?,
            qkv: Linear::load_in(precision, hidden, 3 * hidden, &name("attn.qkv"))?,
            norm: HeadNorm::load(config, &name("attn.norm"))?,
            out: Linear::load_in(precision, hidden, hidden, &name("attn.proj"))?,
            mlp: FeedForward::load(hidden, config.mlp_size(), precision, &name("mlp"))?,
        })
    }

    /// Both modulations: before attention, before the feed-forward part.
    fn modulations(&self, modulated: &Modulated) -> Result<(Modulation, Modulation)> {
        Ok((modulated.triple(self.modulation)?, modulated.triple(self.modulation + 3)?))
    }

    /// What follows attention, added to `x`.
    fn finish(
        &self,
        x: &Tensor,
        attended: &Tensor,
        modulations: &(Modulation, Modulation),
        rows: (&Segments, &Changes),
    ) -> Result<Tensor> {
        let (first, second) = modulations;
        let (segments, changes) = rows;
        let x = first.add(x, &self.out.product(&Input::Rows(attended), changes)?, segments)?;
        second.add(&x, &self.mlp.product(&x, second, rows)?, segments)
    }
}

/// Text and image streams with weights of their own, and joint attention.
pub(super) struct DoubleBlock {
    image: Half,
    text: Half,
    heads: usize,
    precision: Precision,
}

impl DoubleBlock {
    /// Its modulation goes into `modulations`.
    pub(super) fn load(
        config: &TransformerConfig,
        precision: Precision,
        modulations: &mut ModulationsLoader,
        vb: &Tensors,
    ) -> Result<Self> {
        Ok(Self {
            image: Half::load(config, "img", precision, modulations, vb)?,
            text: Half::load(config, "txt", precision, modulations, vb)?,
            heads: config.num_attention_heads,
            precision,
        })
    }

    /// `text [text tokens, hidden]`, `image [image tokens, hidden]` -> the same.
    pub(super) fn forward(&self, text: &Tensor, image: &Tensor, stream: &Stream) -> Result<(Tensor, Tensor)> {
        let (image_segments, text_segments) = (&stream.image_segments, &stream.text_segments);
        let image_modulations = self.image.modulations(&stream.modulated)?;
        let text_modulations = self.text.modulations(&stream.modulated)?;
        let (image_changes, text_changes) = (&stream.image_changes, &stream.text_changes);
        let image_qkv = image_modulations.0.normalized(image, image_segments);
        let image_qkv = self.image.qkv.product(&image_qkv, image_changes)?;
        let text_qkv = text_modulations.0.normalized(text, text_segments);
        let text_qkv = self.text.qkv.product(&text_qkv, text_changes)?;
        let joint = unwritten(stream.joint_segments.rows(), 3 * image.dim(1)?, image)?;
        let (image_places, text_places) = ((&stream.image_places, image_changes), (&stream.text_places, text_changes));
        self.image.norm.apply_into(&joint, image_places, &image_qkv, Some(&stream.image_rotary))?;
        // Text stands at position zero: nothing to rotate.
        self.text.norm.apply_into(&joint, text_places, &text_qkv, None)?;
        let attended = attention_in(self.precision, &joint, self.heads, &stream.joint_segments)?;
        let (text_attended, image_attended) = stream.split(&attended)?;
        let (image_rows, text_rows) = ((image_segments, image_changes), (text_segments, text_changes));
        let image = self.image.finish(image, &image_attended, &image_modulations, image_rows)?;
        let text = self.text.finish(text, &text_attended, &text_modulations, text_rows)?;
        Ok((text, image))
    }
}

/// The joint stream, attention and feed-forward side by side.
pub(super) struct SingleBlock {
    /// The first part of its modulation.
    modulation: usize,
    /// Queries, keys and values, and the first half of the feed-forward part.
    linear1: Linear,
    /// The two as layers of their own, with the same weights. Only where these are dense.
    parts: Option<[Linear; 2]>,
    linear2: Linear,
    norm: HeadNorm,
    precision: Precision,
    heads: usize,
    hidden: usize,
    mlp: usize,
}

impl SingleBlock {
    /// Its modulation goes into `modulations`.
    pub(super) fn load(
        config: &TransformerConfig,
        precision: Precision,
        modulations: &mut ModulationsLoader,
        vb: &Tensors,
    ) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size(), config.mlp_size());
        let modulation = modulations.load(SINGLE_PARTS, &vb.pp("modulation.lin"))?;
        let linear1 = Linear::load_in(precision, hidden, 3 * hidden + mlp, &vb.pp("linear1"))?;
        let parts = linear1.part(0, 3 * hidden)?.zip(linear1.part(3 * hidden, mlp)?);
        Ok(Self {
            modulation,
            parts: parts.map(|(qkv, feed)| [qkv, feed]),
            linear1,
            linear2: Linear::load_in(precision, hidden + mlp, hidden, &vb.pp("linear2"))?,
            norm: HeadNorm::load(config, &vb.pp("norm"))?,
            precision,
            heads: config.num_attention_heads,
            hidden,
            mlp,
        })
    }

    /// `joint [tokens, hidden]` -> the same.
    pub(super) fn forward(&self, joint: &Tensor, stream: &Stream) -> Result<Tensor> {
        let modulation = stream.modulated.triple(self.modulation)?;
        let x = modulation.normalized(joint, &stream.joint_segments);
        let out = match &self.parts {
            Some(parts) if joint.device().is_cuda() => self.in_place(parts, x.computed()?.as_ref(), stream)?,
            _ => self.side_by_side(&x, stream)?,
        };
        modulation.add(joint, &out, &stream.joint_segments)
    }

    /// One matrix product for attention and the feed-forward half. `linear2` reads both results side by side.
    fn side_by_side(&self, x: &Input, stream: &Stream) -> Result<MatrixProduct<'_>> {
        let changes = &stream.joint_changes;
        let wide = self.linear1.product(x, changes)?;
        let qkv = self.norm.apply(&wide.narrow(0, 3 * self.hidden)?, Some(&stream.joint_rotary), changes)?;
        let attended = attention_in(self.precision, &qkv, self.heads, &stream.joint_segments)?;
        let right = wide.narrow(3 * self.hidden, self.mlp)?;
        self.linear2.product(&Input::GeluTanh { left: Some(&attended), right: &right }, changes)
    }

    /// The same without a copy: GELU is in the matrix product's epilogue, and both results are written where `linear2` reads.
    fn in_place(&self, [qkv, feed]: &[Linear; 2], x: &Tensor, stream: &Stream) -> Result<MatrixProduct<'_>> {
        let changes = &stream.joint_changes;
        let qkv = qkv.product(&Input::Rows(x), changes)?;
        let qkv = self.norm.apply(&qkv, Some(&stream.joint_rotary), changes)?;
        let inner = unwritten(x.dim(0)?, self.hidden + self.mlp, x)?;
        attention_into(&inner, 0, &qkv, self.heads, &stream.joint_segments)?;
        feed.gelu_into(&inner, self.hidden, x, changes)?;
        self.linear2.product(&Input::Rows(&inner), changes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::positions::tables;
    use super::*;
    use crate::engine::noise::standard_normal;
    use crate::engine::ops::Places;
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;
    use std::collections::HashMap;

    /// The two ways through a single block.
    #[test]
    fn writing_in_place_equals_writing_side_by_side() {
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
        let vb = Tensors::from(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu));
        let mut modulations = ModulationsLoader::new(&config, &vb).expect("memory");
        let block = SingleBlock::load(&config, Precision::Full, &mut modulations, &vb).expect("loads");
        let image_rotary = tables([3, 4], &[], config.axes_dims_rope, &Device::Cpu).expect("tables");
        let (none, all) = (Segments::from_lengths([0]), Segments::from_lengths([12]));
        let stream = Stream {
            image_places: Places::new(&all, [0]),
            text_places: Places::new(&none, [0]),
            image_segments: all.clone(),
            text_segments: none,
            joint_segments: all,
            image_changes: Changes::default(),
            text_changes: Changes::default(),
            joint_changes: Changes::default(),
            joint_rotary: image_rotary.clone(),
            image_rotary,
            residuals: Vec::new(),
            modulated: {
                let modulations = modulations.finish(&config, &vb).expect("joins");
                modulations.of_rows(modulations.forward(&random(10, &[1, 32]), &Changes::default()).expect("modulates"))
            },
        };
        let x = random(11, &[12, 32]);
        let side_by_side = block.side_by_side(&Input::Rows(&x), &stream).and_then(|out| out.biased()).expect("runs");
        let parts = block.parts.as_ref().expect("dense");
        let in_place = block.in_place(parts, &x, &stream).and_then(|out| out.biased()).expect("runs");
        let largest: f32 =
            (side_by_side - in_place).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
        assert!(largest < 1e-5, "{largest:e}");
    }
}
