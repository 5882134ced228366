//! The names of Depth-Anything's tensors in files: those of transformers, and the original ones.

use crate::engine::vision::block::BlockNames;

/// States of the backbone that the head reads, and stages of the head.
pub(super) const STAGES: usize = 4;

/// How a file names tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As transformers (`Depth-Anything-V2-Small-hf`).
    Transformers,
    /// As the model's authors.
    Original,
}

impl Spelling {
    /// That of a file with tensors of these names.
    pub(super) fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> Self {
        if names.any(|name| name.starts_with("pretrained.")) { Self::Original } else { Self::Transformers }
    }

    /// The modules of a block of the backbone.
    pub(super) fn block(self, index: usize) -> BlockNames {
        let name = |module: &str| match self {
            Self::Transformers => format!("backbone.encoder.layer.{index}.{module}"),
            Self::Original => format!("pretrained.blocks.{index}.{module}"),
        };
        let (qkv, attention_out, scales) = match self {
            Self::Transformers => (
                ["query", "key", "value"].map(|part| name(&format!("attention.attention.{part}"))).to_vec(),
                name("attention.output.dense"),
                ["layer_scale1.lambda1", "layer_scale2.lambda1"],
            ),
            Self::Original => (vec![name("attn.qkv")], name("attn.proj"), ["ls1.gamma", "ls2.gamma"]),
        };
        BlockNames {
            attention_norm: name("norm1"),
            qkv,
            attention_out,
            scales: Some(scales.map(name)),
            feed_norm: name("norm2"),
            up: name("mlp.fc1"),
            down: name("mlp.fc2"),
        }
    }

    /// A tensor outside of the blocks, by the model's own name.
    pub(super) fn tensor(self, name: &str) -> String {
        match (self, name) {
            (Self::Transformers, "class") => "backbone.embeddings.cls_token".to_owned(),
            (Self::Transformers, "positions") => "backbone.embeddings.position_embeddings".to_owned(),
            (Self::Original, "class") => "pretrained.cls_token".to_owned(),
            (Self::Original, "positions") => "pretrained.pos_embed".to_owned(),
            _ => match name.rsplit_once('.') {
                Some((module, tensor)) => format!("{}.{tensor}", self.module(module)),
                None => name.to_owned(),
            },
        }
    }

    /// A module outside of the blocks, by the model's own name.
    pub(super) fn module(self, name: &str) -> String {
        if let Some((stage, part)) = staged(name) {
            return self.of_stage(stage, part);
        }
        let [transformers, original] = match name {
            "patches" => ["backbone.embeddings.patch_embeddings.projection", "pretrained.patch_embed.proj"],
            "backbone_norm" => ["backbone.layernorm", "pretrained.norm"],
            "head.first" => ["head.conv1", "depth_head.scratch.output_conv1"],
            "head.second" => ["head.conv2", "depth_head.scratch.output_conv2.0"],
            "head.last" => ["head.conv3", "depth_head.scratch.output_conv2.2"],
            other => [other, other],
        };
        match self {
            Self::Transformers => transformers.to_owned(),
            Self::Original => original.to_owned(),
        }
    }

    /// A module of a stage. transformers counts the fusion's layers from the last stage on, the authors all from 1.
    fn of_stage(self, stage: usize, part: &str) -> String {
        let (reversed, counted) = (STAGES - 1 - stage, stage + 1);
        match (self, part) {
            (Self::Transformers, "project") => format!("neck.reassemble_stage.layers.{stage}.projection"),
            (Self::Transformers, "resize") => format!("neck.reassemble_stage.layers.{stage}.resize"),
            (Self::Transformers, "reduce") => format!("neck.convs.{stage}"),
            (Self::Transformers, part) => {
                let module = match part {
                    "skip.first" => "residual_layer1.convolution1",
                    "skip.second" => "residual_layer1.convolution2",
                    "refine.first" => "residual_layer2.convolution1",
                    "refine.second" => "residual_layer2.convolution2",
                    _ => "projection",
                };
                format!("neck.fusion_stage.layers.{reversed}.{module}")
            }
            (Self::Original, "project") => format!("depth_head.projects.{stage}"),
            (Self::Original, "resize") => format!("depth_head.resize_layers.{stage}"),
            (Self::Original, "reduce") => format!("depth_head.scratch.layer{counted}_rn"),
            (Self::Original, part) => {
                let module = match part {
                    "skip.first" => "resConfUnit1.conv1",
                    "skip.second" => "resConfUnit1.conv2",
                    "refine.first" => "resConfUnit2.conv1",
                    "refine.second" => "resConfUnit2.conv2",
                    _ => "out_conv",
                };
                format!("depth_head.scratch.refinenet{counted}.{module}")
            }
        }
    }
}

/// The number of the stage of a module, and the module in it.
fn staged(name: &str) -> Option<(usize, &str)> {
    let (stage, part) = name.strip_prefix("stages.")?.split_once('.')?;
    Some((stage.parse().ok()?, part))
}
