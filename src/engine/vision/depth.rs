//! Depth-Anything V2: an image to a map of how near everything is.
//!
//! Follows `DepthAnythingForDepthEstimation` in transformers' `modeling_depth_anything.py`, and its image processor. It runs on the
//! CPU in f32, whatever the model's device: the small model takes about as long as a step there, no memory of a GPU, and gives the
//! same map everywhere.
//!
//! Its file is `model.safetensors` of `depth-anything/Depth-Anything-V2-Small-hf`, with or without the `config.json` beside it, or
//! a file with the original names, such as `depth_anything_v2_vits.safetensors`. Without a configuration it is the small model.

mod backbone;
mod config;
mod head;
mod names;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};

use super::pixels::{CHANNELS, Normalization, normalize, planes};
use super::resize::{Filter, Size, resized};
use super::weights::{Reader, Weights};
use super::{json, unusable};
use crate::domain::engine::EngineError;
use crate::domain::image::RgbImage;
use crate::engine::checkpoint::{CheckpointError, Problem, TensorFile};
use crate::engine::device::device_error;

use backbone::Backbone;
use config::{DepthConfig, FileConfig};
use head::Head;
use names::Spelling;

/// The weights in a folder, and the configuration beside them.
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// Of ImageNet's images.
const NORMALIZATION: Normalization = Normalization { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };

/// The model's file, opened and checked.
pub(super) struct DepthFiles {
    config: DepthConfig,
    weights: Weights,
}

impl DepthFiles {
    /// Opens a file, or the one in a folder.
    ///
    /// # Errors
    /// With everything that is missing or misshapen.
    pub(super) fn open(path: &Path) -> std::result::Result<Self, CheckpointError> {
        let file: PathBuf = if path.is_dir() { path.join(WEIGHTS) } else { path.to_owned() };
        Self::checked(&file).map_err(|problems| unusable(path, problems))
    }

    fn checked(path: &Path) -> std::result::Result<Self, Vec<Problem>> {
        let file = TensorFile::open(path).map_err(|problem| {
            let needed = "depth needs model.safetensors of depth-anything/Depth-Anything-V2-Small-hf, or its folder";
            vec![problem, Problem::unreadable(path.display().to_string(), needed)]
        })?;
        // The file of a folder has its configuration beside it; another file may lie beside anything.
        let is_of_folder = path.file_name().is_some_and(|name| name == WEIGHTS);
        let config_path = path.with_file_name(CONFIG);
        let config = if is_of_folder && config_path.is_file() {
            let read = json::read::<FileConfig>(&config_path).map_err(|problem| vec![problem])?;
            read.checked().map_err(|reason| vec![Problem::unreadable(config_path.display().to_string(), reason)])?
        } else {
            DepthConfig::small()
        };
        let mut problems = Vec::new();
        let wanted = config.wanted(Spelling::of(file.names()));
        let weights = Weights::check(file, wanted, &mut problems);
        weights.map(|weights| Self { config, weights }).ok_or(problems)
    }

    /// Numbers in all weights.
    pub(super) fn elements(&self) -> usize {
        self.weights.elements()
    }

    /// Reads the weights into the host's memory.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn load(&self) -> Result<DepthEstimator> {
        DepthEstimator::load(&self.config, self.weights.onto(&Device::Cpu, DType::F32))
    }
}

/// The model.
pub(crate) struct DepthEstimator {
    backbone: Backbone,
    head: Head,
    /// Pixels of the sides that it was trained with.
    side: usize,
    patch: usize,
}

impl DepthEstimator {
    fn load(config: &DepthConfig, reader: Reader) -> Result<Self> {
        let (backbone, head) = (Backbone::load(config, reader)?, Head::load(config, reader)?);
        Ok(Self { backbone, head, side: config.side, patch: config.patch })
    }

    /// The depth map of an image, in its size: the nearest is white, the farthest black, and the three channels are equal.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an image without pixels, [`EngineError::NotFinite`] where the model gives no numbers, and when
    /// the memory does not suffice.
    pub(crate) fn map(&self, image: &RgbImage) -> std::result::Result<RgbImage, EngineError> {
        let size = Size { height: image.height() as usize, width: image.width() as usize };
        if size.height == 0 || size.width == 0 {
            return Err(EngineError::Request("an image without pixels has no depth".to_owned()));
        }
        let seen = seen_size(size, self.side, self.patch);
        let depth = self.estimate(image, size, seen).map_err(device_error)?;
        let depth = resized(&depth, seen, size, Filter::Linear);
        let gray = levels(&depth).ok_or(EngineError::NotFinite)?;
        let pixels = gray.into_iter().flat_map(|level| [level; CHANNELS]).collect();
        RgbImage::new(image.width(), image.height(), pixels)
            .ok_or_else(|| EngineError::Fatal("a depth map of another size than its image".to_owned()))
    }

    /// The inverse depth of an image that is resized to `seen`, row by row in that size.
    fn estimate(&self, image: &RgbImage, size: Size, seen: Size) -> Result<Vec<f32>> {
        let mut pixels = resized(&planes(image), size, seen, Filter::Cubic);
        for value in &mut pixels {
            // The image processor resizes bytes.
            *value = value.round().clamp(0.0, 255.0);
        }
        normalize(&mut pixels, NORMALIZATION);
        let pixels = Tensor::from_vec(pixels, (CHANNELS, seen.height, seen.width), &Device::Cpu)?;
        let states = self.backbone.forward(&pixels)?;
        self.head.forward(&states, seen)?.flatten_all()?.to_vec1()
    }
}

/// The size in which the model sees an image: its proportions, whole patches, and the side that is nearer to `side` about as long
/// (`DPTImageProcessor` with `keep_aspect_ratio`).
fn seen_size(size: Size, side: usize, patch: usize) -> Size {
    let scale = |pixels: usize| side as f64 / pixels as f64;
    let (of_height, of_width) = (scale(size.height), scale(size.width));
    let scale = if (1.0 - of_width).abs() < (1.0 - of_height).abs() { of_width } else { of_height };
    let whole = |pixels: usize| {
        let patches = (scale * pixels as f64 / patch as f64).round_ties_even() as usize;
        patches.max(1) * patch
    };
    Size { height: whole(size.height), width: whole(size.width) }
}

/// Values as bytes, the least as 0 and the largest as 255; all 0 where they are equal. `None` when any is not finite.
fn levels(values: &[f32]) -> Option<Vec<u8>> {
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let (least, most) = values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    let scale = if most > least { 255.0 / (most - least) } else { 0.0 };
    Some(values.iter().map(|value| ((value - least) * scale).round() as u8).collect())
}

#[cfg(test)]
mod tests;
