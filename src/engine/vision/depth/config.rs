//! The configuration of Depth-Anything, and its tensors.

use serde::Deserialize;

use super::names::{STAGES, Spelling};
use crate::engine::vision::block::{Activation, BlockSizes};
use crate::engine::vision::pixels::CHANNELS;
use crate::engine::vision::weights::{WIDTH_MAX, Wanted};

/// What the sides of the stages' maps are multiplied by.
const FACTORS: [f64; STAGES] = [4.0, 2.0, 1.0, 0.5];

/// Maximum pixels of a side that the model was trained with.
const SIDE_MAX: usize = 4096;

/// `config.json`, as transformers' `DepthAnythingForDepthEstimation` writes it. A field that it lacks has the default of its class.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct FileConfig {
    backbone_config: BackboneConfig,
    neck_hidden_sizes: Vec<usize>,
    fusion_hidden_size: usize,
    head_hidden_size: usize,
    reassemble_factors: Vec<f64>,
    depth_estimation_type: String,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct BackboneConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: f64,
    image_size: usize,
    patch_size: usize,
    layer_norm_eps: f64,
    hidden_act: String,
    use_swiglu_ffn: bool,
    /// The blocks whose outputs are read, counted from 1.
    out_indices: Vec<usize>,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            backbone_config: BackboneConfig::default(),
            neck_hidden_sizes: vec![48, 96, 192, 384],
            fusion_hidden_size: 64,
            head_hidden_size: 32,
            reassemble_factors: FACTORS.to_vec(),
            depth_estimation_type: "relative".to_owned(),
        }
    }
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            image_size: 224,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            hidden_act: "gelu".to_owned(),
            use_swiglu_ffn: false,
            out_indices: vec![3, 6, 9, 12],
        }
    }
}

impl FileConfig {
    /// The sizes, if they are of a model that is supported.
    ///
    /// # Errors
    /// With the reason.
    pub(super) fn checked(self) -> Result<DepthConfig, &'static str> {
        let backbone = self.backbone_config;
        let neck: [usize; STAGES] =
            self.neck_hidden_sizes.try_into().map_err(|_| "neck_hidden_sizes must have four widths")?;
        let taken: [usize; STAGES] =
            backbone.out_indices.try_into().map_err(|_| "out_indices must have four blocks")?;
        if self.reassemble_factors != FACTORS {
            return Err("reassemble_factors must be 4, 2, 1 and 0.5");
        }
        if self.depth_estimation_type != "relative" {
            return Err("depth_estimation_type must be relative: a metric model gives other maps");
        }
        if backbone.hidden_act != "gelu" || backbone.use_swiglu_ffn {
            return Err("the backbone must have GELU between its feed-forward layers");
        }
        if !(0.0..=64.0).contains(&backbone.mlp_ratio) {
            return Err("mlp_ratio must be from 0 to 64");
        }
        let config = DepthConfig {
            blocks: BlockSizes {
                width: backbone.hidden_size,
                inner: (backbone.hidden_size.min(WIDTH_MAX) as f64 * backbone.mlp_ratio) as usize,
                heads: backbone.num_attention_heads,
                layers: backbone.num_hidden_layers,
                epsilon: backbone.layer_norm_eps,
                activation: Activation::Gelu,
                is_scaled: true,
            },
            taken,
            side: backbone.image_size,
            patch: backbone.patch_size,
            neck,
            fusion: self.fusion_hidden_size,
            head: self.head_hidden_size,
        };
        config.fault().map_or(Ok(config), Err)
    }
}

/// The sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DepthConfig {
    pub(super) blocks: BlockSizes,
    /// The blocks whose outputs the head reads, counted from 1, in their order.
    pub(super) taken: [usize; STAGES],
    /// Pixels of a side of the images it was trained with.
    pub(super) side: usize,
    pub(super) patch: usize,
    /// Widths of the stages.
    pub(super) neck: [usize; STAGES],
    /// Width in which the stages are joined.
    pub(super) fusion: usize,
    /// Width before the map.
    pub(super) head: usize,
}

impl DepthConfig {
    /// That of the small model.
    pub(super) fn small() -> Self {
        Self {
            blocks: BlockSizes {
                width: 384,
                inner: 1536,
                heads: 6,
                layers: 12,
                epsilon: 1e-6,
                activation: Activation::Gelu,
                is_scaled: true,
            },
            taken: [3, 6, 9, 12],
            side: 518,
            patch: 14,
            neck: [48, 96, 192, 384],
            fusion: 64,
            head: 32,
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let is_width = |width: &usize| (1..=WIDTH_MAX).contains(width);
        let is_block = |block: &usize| (1..=self.blocks.layers).contains(block);
        if !self.neck.iter().chain([&self.fusion, &self.head]).all(is_width) || self.fusion < 2 {
            Some("every width must be from 1 to 65536")
        } else if !(1..=SIDE_MAX).contains(&self.side) || !(1..=self.side).contains(&self.patch) {
            Some("image_size must be at most 4096, and patch_size at most image_size")
        } else if !self.taken.iter().all(is_block) || !self.taken.is_sorted_by(|one, next| one < next) {
            Some("out_indices must name blocks of the backbone, in their order")
        } else {
            self.blocks.fault()
        }
    }

    /// Patches along a side of the images that it was trained with.
    pub(super) fn grid(&self) -> usize {
        self.side / self.patch
    }

    /// The tensors that it requires, by their names in a file.
    pub(super) fn wanted(&self, spelling: Spelling) -> Vec<Wanted> {
        let (width, fusion) = (self.blocks.width, self.fusion);
        let module = |name: &str, shape: &[usize]| Wanted::module(name, &[spelling.module(name)], shape);
        let tensor = |name: &str, shape: &[usize]| Wanted::tensor(name, spelling.tensor(name), shape);
        let mut wanted = self.blocks.wanted(|index| spelling.block(index));
        wanted.push(tensor("class", &[1, 1, width]));
        wanted.push(tensor("positions", &[1, self.grid().pow(2) + 1, width]));
        wanted.extend(module("patches", &[width, CHANNELS, self.patch, self.patch]));
        wanted.extend(module("backbone_norm", &[width]));
        for (stage, channels) in self.neck.into_iter().enumerate() {
            wanted.extend(module(&format!("stages.{stage}.project"), &[channels, width, 1, 1]));
            let kernel = match stage {
                0 => 4,
                1 => 2,
                2 => 0,
                _ => 3,
            };
            if kernel > 0 {
                wanted.extend(module(&format!("stages.{stage}.resize"), &[channels, channels, kernel, kernel]));
            }
            wanted.push(tensor(&format!("stages.{stage}.reduce.weight"), &[fusion, channels, 3, 3]));
            for convolution in ["skip.first", "skip.second", "refine.first", "refine.second"] {
                wanted.extend(module(&format!("stages.{stage}.{convolution}"), &[fusion, fusion, 3, 3]));
            }
            wanted.extend(module(&format!("stages.{stage}.out"), &[fusion, fusion, 1, 1]));
        }
        wanted.extend(module("head.first", &[fusion / 2, fusion, 3, 3]));
        wanted.extend(module("head.second", &[self.head, fusion / 2, 3, 3]));
        wanted.extend(module("head.last", &[1, self.head, 1, 1]));
        wanted
    }
}
