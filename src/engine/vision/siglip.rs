//! SigLIP's vision transformer: an image to one embedding for each of its patches.
//!
//! Follows `SiglipVisionTransformer` in transformers' `modeling_siglip.py`, without the pooling head: FLUX.1-Redux takes the last
//! hidden state behind the last norm.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, Module as _};
use serde::Deserialize;

use super::block::{Activation, Block, BlockNames, BlockSizes};
use super::pixels::{CHANNELS, Normalization, normalize, patches, planes};
use super::weights::{Reader, WIDTH_MAX, Wanted};
use crate::domain::image::RgbImage;
use crate::engine::linear::Linear;

/// Of `SiglipImageProcessor`.
const NORMALIZATION: Normalization = Normalization { mean: [0.5; CHANNELS], deviation: [0.5; CHANNELS] };

/// Maximum pixels of a side of the images that it takes.
const SIDE_MAX: usize = 4096;

/// `image_encoder/config.json`, as transformers' `SiglipVisionModel` writes it. A field that it lacks has the default of its class.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct SiglipConfig {
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for SiglipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: CHANNELS,
            image_size: 224,
            patch_size: 16,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            layer_norm_eps: 1e-6,
        }
    }
}

impl SiglipConfig {
    /// Those of `google/siglip-so400m-patch14-384`, for a file without a configuration.
    pub(super) fn so400m() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            ..Self::default()
        }
    }

    /// What is wrong with it, if anything.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.num_channels != CHANNELS {
            Some("num_channels must be 3 (RGB)")
        } else if self.hidden_act != "gelu_pytorch_tanh" {
            Some("hidden_act must be gelu_pytorch_tanh")
        } else if !(1..=SIDE_MAX).contains(&self.image_size) || !(1..=self.image_size).contains(&self.patch_size) {
            Some("image_size must be at most 4096, and patch_size at most image_size")
        } else if self.tokens() > WIDTH_MAX {
            Some("an image can have at most 65536 patches")
        } else {
            self.blocks().fault()
        }
    }

    /// Pixels of a side of the images that it takes.
    pub(super) fn side(&self) -> usize {
        self.image_size
    }

    /// Patches of an image. Pixels that are no whole patch are not seen.
    pub(super) fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    fn blocks(&self) -> BlockSizes {
        BlockSizes {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            layers: self.num_hidden_layers,
            epsilon: self.layer_norm_eps,
            activation: Activation::GeluTanh,
            is_scaled: false,
        }
    }

    /// The tensors that it requires, by their names in the published files.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let (width, side) = (self.hidden_size, self.patch_size);
        let module = |name: &str, module: &str, shape: &[usize]| {
            Wanted::module(name, &[format!("vision_model.{module}")], shape).to_vec()
        };
        let positions = "vision_model.embeddings.position_embedding.weight";
        [
            module("patches", "embeddings.patch_embedding", &[width, CHANNELS, side, side]),
            vec![Wanted::tensor("positions", positions, &[self.tokens(), width])],
            self.blocks().wanted(block_names),
            module("final_norm", "post_layernorm", &[width]),
        ]
        .concat()
    }
}

fn block_names(index: usize) -> BlockNames {
    let name = |module: &str| format!("vision_model.encoder.layers.{index}.{module}");
    BlockNames {
        attention_norm: name("layer_norm1"),
        qkv: ["q_proj", "k_proj", "v_proj"].map(|part| name(&format!("self_attn.{part}"))).to_vec(),
        attention_out: name("self_attn.out_proj"),
        scales: None,
        feed_norm: name("layer_norm2"),
        up: name("mlp.fc1"),
        down: name("mlp.fc2"),
    }
}

/// The encoder.
pub(crate) struct Siglip {
    config: SiglipConfig,
    patches: Linear,
    /// `[tokens, width]`
    positions: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    device: Device,
    dtype: DType,
}

impl Siglip {
    /// Reads the weights.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(super) fn load(config: &SiglipConfig, reader: Reader) -> Result<Self> {
        let positions = reader.tensor("positions")?;
        Ok(Self {
            patches: reader.linear("patches")?,
            blocks: config.blocks().load(reader)?,
            final_norm: reader.norm("final_norm", config.layer_norm_eps)?,
            device: positions.device().clone(),
            dtype: positions.dtype(),
            positions,
            config: config.clone(),
        })
    }

    /// Pixels of a side of the images that it takes.
    pub(super) fn side(&self) -> usize {
        self.config.side()
    }

    /// Rows of an image's embedding.
    pub(super) fn tokens(&self) -> usize {
        self.config.tokens()
    }

    /// An image of [`Self::side`] as pixels from -1 to 1, `[3, side, side]` in f32.
    ///
    /// # Errors
    /// When its size is another one.
    pub(crate) fn pixels(&self, image: &RgbImage) -> Result<Tensor> {
        let mut values = planes(image);
        normalize(&mut values, NORMALIZATION);
        Tensor::from_vec(values, (CHANNELS, self.side(), self.side()), &self.device)
    }

    /// `pixels [3, side, side]` -> the last hidden state behind the last norm, `[tokens, width]`.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = patches(pixels, self.config.patch_size)?.to_dtype(self.dtype)?;
        let mut x = (self.patches.forward(&patches)? + &self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.final_norm.forward(&x)
    }
}
