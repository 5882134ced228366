//! A model's card: what clients may ask of it and what they get when they do not say.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::ids::ModelId;

/// What the catalog says of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The name clients use.
    pub id: ModelId,
    /// What a person should know before taking its pictures for more than they are.
    pub notice: Option<String>,
    /// Used for fields that a request leaves out.
    pub defaults: ParameterDefaults,
    /// What a request may ask for.
    pub limits: ParameterLimits,
    /// Fewest input pictures a request must bring.
    pub input_images_min: usize,
    /// Most input pictures a request may bring; 0 for plain text-to-image.
    pub input_images_max: usize,
    /// Longest prompt, in Unicode characters.
    pub prompt_chars_max: usize,
    /// T5 tokens a prompt is padded or cut to. FLUX has no text mask, so this is part of the model.
    pub sequence_length: usize,
    /// Scale of true classifier-free guidance, used when a request has a negative prompt.
    pub true_cfg_scale: f64,
}

/// `parameter_defaults` of the catalog routes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterDefaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Value fed to the guidance embedding.
    pub guidance: f64,
}

/// `parameter_limits` of the catalog routes. All bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterLimits {
    /// Pixels.
    pub width_min: u32,
    /// Pixels.
    pub width_max: u32,
    /// Pixels.
    pub height_min: u32,
    /// Pixels.
    pub height_max: u32,
    /// Width and height must be multiples of this many pixels.
    pub size_multiple_of: u32,
    /// Most pixels in one picture (width × height).
    pub pixels_max: u32,
    /// Fewest denoising steps.
    pub steps_min: u32,
    /// Most denoising steps.
    pub steps_max: u32,
    /// Smallest guidance value.
    pub guidance_min: f64,
    /// Largest guidance value.
    pub guidance_max: f64,
}

/// One file of a checkpoint that is compiled into the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// Path inside the checkpoint folder, with `/`: `transformer/config.json`.
    pub path: &'static str,
    /// The whole file.
    pub bytes: &'static [u8],
}

/// A checkpoint in one of the two published layouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// A folder on disk.
    Directory(PathBuf),
    /// Compiled into the program.
    Embedded(&'static [EmbeddedFile]),
}
