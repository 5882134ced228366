//! Provenance: what an image's file says about how it was generated. It leaves out the prompt, the client and the time,
//! so the same request gives the same file.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::adapter::AdapterId;
use crate::domain::ids::ModelId;
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateSpec;

/// The program that generated the image, and its version.
pub const SOFTWARE: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// An adapter of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterProvenance {
    /// The SHA-256 of its file, in hexadecimal digits.
    pub sha256: String,
    /// What its changes were multiplied by.
    pub scale: f64,
}

impl AdapterProvenance {
    fn of(id: &AdapterId, scale: f64) -> Self {
        Self { sha256: id.to_string(), scale }
    }
}

/// How an image was generated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// The model.
    pub model: ModelId,
    /// The revision of the model's repository, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps of the full schedule.
    pub steps: u32,
    /// Value of the guidance embedding.
    pub guidance: f64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How far it departs from the input image, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Its images by their roles, if there were any: their number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<&'static str, usize>,
    /// The threshold of the first-block cache, where it was used: then the image differs from the one without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_threshold: Option<f64>,
    /// The adapters, if there were any, in the order of the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<AdapterProvenance>,
    /// The precision, where it is lossy: then the image differs from the one in full precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

impl Provenance {
    /// Provenance of the image for `spec`, from a model's `revision` in a `precision`.
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
            images: images_of(spec),
            cache_threshold: spec.step_cache().map(|cache| cache.threshold),
            loras: spec.loras().iter().map(|lora| AdapterProvenance::of(&lora.id, lora.scale)).collect(),
            precision: precision.if_lossy(),
        }
    }
}

/// How many images of each role a request has.
fn images_of(spec: &GenerateSpec) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for (role, _, _) in spec.given_images() {
        *counts.entry(role.as_str()).or_default() += 1;
    }
    counts
}
