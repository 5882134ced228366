//! What looks at images of requests beside the model: FLUX.1-Redux with its image encoder, and a model that estimates depth.
//!
//! Knows files and layers. Must not know what the transformer makes of an embedding, or who asks.

mod block;
mod depth;
mod json;
mod pixels;
mod redux;
mod resize;
mod siglip;
mod weights;

use std::path::Path;

use candle_core::{DType, Device, Result};

use super::checkpoint::{CheckpointError, Problem};
use crate::domain::conditioning::StyleCard;
use crate::domain::model::ModelFiles;

pub(crate) use depth::DepthEstimator;
use depth::DepthFiles;
use redux::ReduxFiles;
pub(crate) use redux::StyleEncoder;

/// The files of what is loaded beside a model for its images, opened and checked.
#[derive(Default)]
pub(crate) struct VisionFiles {
    redux: Option<ReduxFiles>,
    depth: Option<DepthFiles>,
}

/// What is loaded of them.
#[derive(Default)]
pub(crate) struct Vision {
    /// FLUX.1-Redux.
    pub(crate) styles: Option<StyleEncoder>,
    /// Always in the host's memory, in f32: a map is the same on every device.
    pub(crate) depth: Option<DepthEstimator>,
}

impl VisionFiles {
    /// Opens the files that `files` name, for a transformer whose text embeddings have `text_width` numbers. Reads headers and
    /// configurations.
    ///
    /// # Errors
    /// With everything that is wrong with the first of them that is not complete, or does not belong to this transformer.
    pub(crate) fn open(files: &ModelFiles, text_width: usize) -> std::result::Result<Self, CheckpointError> {
        let Some(attachments) = files.attachments() else { return Ok(Self::default()) };
        let redux = attachments.redux.as_deref().map(|path| ReduxFiles::open(path, text_width));
        let depth = attachments.depth.as_deref().map(DepthFiles::open);
        Ok(Self { redux: redux.transpose()?, depth: depth.transpose()? })
    }

    /// Bytes of the weights in the memory of the model's device, which computes in `dtype`: on a GPU, the host has those of the
    /// depth model.
    pub(crate) fn bytes_beside(&self, dtype: DType, is_on_host: bool) -> usize {
        let redux = self.redux.as_ref().map_or(0, ReduxFiles::elements);
        let depth = self.depth.as_ref().filter(|_| is_on_host).map_or(0, DepthFiles::elements);
        redux * dtype.size_in_bytes() + depth * DType::F32.size_in_bytes()
    }

    /// Reads the weights. Those on `device` are kept in `dtype`.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(&self, device: &Device, dtype: DType) -> Result<Vision> {
        Ok(Vision {
            styles: self.redux.as_ref().map(|redux| redux.load(device, dtype)).transpose()?,
            depth: self.depth.as_ref().map(DepthFiles::load).transpose()?,
        })
    }
}

/// What requests must know of FLUX.1-Redux in a folder. Reads the image encoder's configuration and nothing else.
///
/// # Errors
/// When there is no image encoder, or its configuration cannot be used.
pub fn style_card(path: &Path) -> std::result::Result<StyleCard, CheckpointError> {
    redux::card(path)
}

/// The error of a folder or file.
fn unusable(place: &Path, problems: Vec<Problem>) -> CheckpointError {
    CheckpointError { place: place.display().to_string(), problems }
}
