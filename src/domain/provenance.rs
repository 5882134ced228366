//! What an image's file says of how the image came to be. Nothing of it tells what was asked for in words, by whom, or
//! when: so the same request gives the same file.

use serde::Serialize;

use crate::domain::ids::ModelId;
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateSpec;

/// The program that drew the image, and its version.
pub const SOFTWARE: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// How an image came to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// The model that drew it.
    pub model: ModelId,
    /// Which state of the model's repository, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps of the whole schedule.
    pub steps: u32,
    /// Value of the guidance embedding.
    pub guidance: f64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How far it went away from the image that it was started from, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// In which numbers it was drawn, where these are not the model's own: then it is not the image that the model would
    /// have drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

impl Provenance {
    /// Of the image that is drawn for `spec`, by a model in some state of its repository and some precision.
    #[must_use]
    pub fn of(spec: &GenerateSpec, revision: Option<String>, precision: Precision) -> Self {
        Self {
            model: spec.model().clone(),
            revision,
            seed: spec.seed(),
            steps: spec.steps_scheduled(),
            guidance: spec.guidance(),
            width: spec.width(),
            height: spec.height(),
            strength: spec.input_image().map(|start| start.strength),
            precision: precision.if_lossy(),
        }
    }
}
