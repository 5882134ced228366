//! DINOv2: an image to the states of some of its blocks.
//!
//! Follows `Dinov2Backbone` in transformers' `modeling_dinov2.py`.

use candle_core::{Device, Result, Tensor};
use candle_nn::{LayerNorm, Module as _};

use super::config::DepthConfig;
use super::names::STAGES;
use crate::engine::linear::Linear;
use crate::engine::vision::block::Block;
use crate::engine::vision::pixels::patches;
use crate::engine::vision::resize::{Filter, Size, resized};
use crate::engine::vision::weights::Reader;

/// The backbone.
pub(super) struct Backbone {
    patches: Linear,
    patch: usize,
    /// `[1, width]`: a token before those of the image.
    class: Tensor,
    /// `[1, width]`
    class_position: Tensor,
    /// `[width, grid, grid]`, plane by plane.
    positions: Vec<f32>,
    grid: usize,
    blocks: Vec<Block>,
    taken: [usize; STAGES],
    norm: LayerNorm,
}

impl Backbone {
    /// Reads the weights.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn load(config: &DepthConfig, reader: Reader) -> Result<Self> {
        let (width, grid) = (config.blocks.width, config.grid());
        let positions = reader.tensor("positions")?.reshape((grid * grid + 1, width))?;
        let of_patches = positions.narrow(0, 1, grid * grid)?.t()?.contiguous()?;
        Ok(Self {
            patches: reader.linear("patches")?,
            patch: config.patch,
            class: reader.tensor("class")?.reshape((1, width))?,
            class_position: positions.narrow(0, 0, 1)?.contiguous()?,
            positions: of_patches.flatten_all()?.to_vec1()?,
            grid,
            blocks: config.blocks.load(reader)?,
            taken: config.taken,
            norm: reader.norm("backbone_norm", config.blocks.epsilon)?,
        })
    }

    /// `pixels [3, height, width]`, of whole patches -> the normed states of the taken blocks, `[patches, width]` each, without the
    /// token before them.
    ///
    /// # Errors
    /// When the memory does not suffice.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let (_, height, width) = pixels.dims3()?;
        let size = Size { height: height / self.patch, width: width / self.patch };
        let embedded = (self.patches.forward(&patches(pixels, self.patch)?)? + self.positions_in(size)?)?;
        let class = (&self.class + &self.class_position)?;
        let mut x = Tensor::cat(&[class, embedded], 0)?;
        let mut states = Vec::with_capacity(STAGES);
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            if self.taken.contains(&(index + 1)) {
                states.push(self.norm.forward(&x)?.narrow(0, 1, size.height * size.width)?.contiguous()?);
            }
        }
        Ok(states)
    }

    /// The positions of so many patches, `[patches, width]`: those of the training's grid, or what is between them.
    fn positions_in(&self, size: Size) -> Result<Tensor> {
        let grid = Size { height: self.grid, width: self.grid };
        let planes = if size == grid {
            self.positions.clone()
        } else {
            resized(&self.positions, grid, size, Filter::NearestCubic)
        };
        let width = self.positions.len() / (self.grid * self.grid);
        Tensor::from_vec(planes, (width, size.height * size.width), &Device::Cpu)?.t()?.contiguous()
    }
}
