//! What a request brings beside its prompt: images, each with a role, and what a model makes of them.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::image::RgbImage;

/// The field of the images with roles.
pub const IMAGES: &str = "images";

/// Maximum images of a request, of all roles together.
pub const IMAGES_MAX: usize = 16;

/// Maximum reference images of a request, of any model: each has as many tokens as an output of a megapixel.
pub const REFERENCES_MAX: usize = 4;

/// Maximum control images of a request. Each is a pass of its ControlNet in every step.
pub const CONTROLS_MAX: usize = 4;

/// Maximum style images of a request.
pub const STYLES_MAX: usize = 8;

/// Largest scale of a control or style image.
pub const IMAGE_SCALE_MAX: f64 = 2.0;

/// What an image of a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRole {
    /// The image to change: where an image-to-image or inpainting run starts, or what FLUX.1-Fill repaints.
    Input,
    /// Which part of the input image is repainted: white is.
    Mask,
    /// A map of edges, depth or another property that the result follows.
    Control,
    /// An image that the prompt speaks of: FLUX.1-Kontext edits it.
    Reference,
    /// An image whose look and content are varied, by FLUX.1-Redux.
    Style,
}

/// A text that is none of the words of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {0}")]
pub struct UnknownWord(&'static str);

impl ImageRole {
    /// All roles, in the order in which requests list them.
    pub const ALL: [Self; 5] = [Self::Input, Self::Mask, Self::Control, Self::Reference, Self::Style];

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Mask => "mask",
            Self::Control => "control",
            Self::Reference => "reference",
            Self::Style => "style",
        }
    }
}

impl fmt::Display for ImageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ImageRole {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or(UnknownWord("input, mask, control, reference and style"))
    }
}

/// How a control map is made of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preprocess {
    /// Its edges, by Canny's method.
    Canny,
    /// Its depth, by a model that is loaded beside the checkpoint.
    Depth,
}

impl Preprocess {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Canny, Self::Depth];

    /// Its name on the wire and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canny => "canny",
            Self::Depth => "depth",
        }
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preprocess {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownWord("canny and depth"))
    }
}

/// The kind of control map, for a ControlNet that was trained on several (a union): its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ControlMode(pub u32);

/// The names of the first modes of the published unions, by their numbers.
const CONTROL_MODES: [&str; 7] = ["canny", "tile", "depth", "blur", "pose", "gray", "low_quality"];

impl FromStr for ControlMode {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = (0..).zip(CONTROL_MODES).find(|(_, name)| *name == text).map(|(number, _)| number);
        let number = named.or_else(|| text.parse().ok());
        let words = "canny, tile, depth, blur, pose, gray, low_quality, or a mode's number";
        number.map(Self).ok_or(UnknownWord(words))
    }
}

impl fmt::Display for ControlMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CONTROL_MODES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// What a request says of an image beside its role.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageOptions {
    /// Of a control image: the name of its ControlNet. May be absent where the model has one.
    pub controlnet: Option<Arc<str>>,
    /// Of a control image: what kind of map it is, for a union.
    pub mode: Option<ControlMode>,
    /// Of a control image: it is no map yet, and has to be made into one.
    pub preprocess: Option<Preprocess>,
    /// Of a control or style image: how strongly it acts.
    pub scale: Option<f64>,
    /// Of a control image: the share of the steps that are done before it begins to act.
    pub start: Option<f64>,
    /// Of a control image: the share of the steps after which it acts no more.
    pub end: Option<f64>,
}

/// An unchecked image of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenImage {
    /// The field or option that gave it, for errors: `images[0]`.
    pub field: Cow<'static, str>,
    /// What it does.
    pub role: ImageRole,
    /// Its pixels.
    pub image: Arc<RgbImage>,
    /// What else was said of it.
    pub options: ImageOptions,
}

impl GivenImage {
    /// An image without options.
    #[must_use]
    pub fn new(field: impl Into<Cow<'static, str>>, role: ImageRole, image: Arc<RgbImage>) -> Self {
        Self { field: field.into(), role, image, options: ImageOptions::default() }
    }
}

/// A control image of a valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlImage {
    /// The map in the output size; or the image to make it of.
    pub image: Arc<RgbImage>,
    /// The ControlNet that reads it. `None`: the model itself does, or a LoRA, as channels beside the noisy latents.
    pub controlnet: Option<Arc<str>>,
    /// Its mode, for a union.
    pub mode: Option<ControlMode>,
    /// Whether the engine first estimates the depth of the image.
    pub is_depth_estimated: bool,
    /// What its effect is multiplied by.
    pub scale: f64,
    /// The share of the steps before it acts, from 0.
    pub start: f64,
    /// The share of the steps until which it acts, up to 1.
    pub end: f64,
}

impl ControlImage {
    /// Whether it acts in step `index` of `steps` (`controlnet_keep` of diffusers' `FluxControlNetPipeline`).
    #[must_use]
    pub fn acts_in(&self, index: usize, steps: usize) -> bool {
        let (index, steps) = (index as f64, steps as f64);
        index / steps >= self.start && (index + 1.0) / steps <= self.end
    }
}

/// A style image of a valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct StyleImage {
    /// In the size that the image encoder takes.
    pub image: Arc<RgbImage>,
    /// What its embeddings are multiplied by.
    pub scale: f64,
}

/// What a model's transformer takes beside noisy latents, prompt and guidance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// Nothing (FLUX.1-dev). A run may start from an input image.
    #[default]
    Prompt,
    /// Reference images, as tokens behind those of the image (FLUX.1-Kontext-dev).
    References,
    /// The masked image and its mask, as channels beside the noisy latents (FLUX.1-Fill-dev).
    Fill,
    /// A control image, as channels beside the noisy latents (FLUX.1-Canny-dev, FLUX.1-Depth-dev).
    Control,
}

/// Mask channels of a token: each of its 16×16 pixels.
pub const MASK_CHANNELS: usize = 256;

impl Conditioning {
    /// Channels that a token has beside its noisy latents, of which there are `latents`.
    #[must_use]
    pub fn joined_channels(self, latents: usize) -> usize {
        match self {
            Self::Prompt | Self::References => 0,
            Self::Fill => latents + MASK_CHANNELS,
            Self::Control => latents,
        }
    }

    /// The role of the images that a request gives without one.
    #[must_use]
    pub fn main_role(self) -> ImageRole {
        match self {
            Self::Prompt | Self::Fill => ImageRole::Input,
            Self::References => ImageRole::Reference,
            Self::Control => ImageRole::Control,
        }
    }
}

/// A ControlNet that is loaded beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlNetCard {
    /// The name that requests use.
    pub name: Arc<str>,
    /// How many modes it has, if it is a union: then a request must name one.
    pub modes: Option<u32>,
}

/// FLUX.1-Redux beside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StyleCard {
    /// Pixels of a side of the images that the image encoder takes.
    pub side: u32,
    /// Tokens behind those of the prompt.
    pub tokens: usize,
}

/// Images that are loaded beside a model, as far as requests depend on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachedCards {
    /// Its ControlNets.
    pub controlnets: Vec<ControlNetCard>,
    /// FLUX.1-Redux.
    pub style: Option<StyleCard>,
    /// Whether depth can be estimated.
    pub estimates_depth: bool,
}

/// The sizes that FLUX.1-Kontext was trained with, narrowest first (width, height).
pub const KONTEXT_SIZES: [(u32, u32); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// The one of [`KONTEXT_SIZES`] whose proportions are nearest to an image's; of two that are equally near, the narrower one
/// (`FluxKontextPipeline` of diffusers).
#[must_use]
pub fn kontext_size((width, height): (u32, u32)) -> (u32, u32) {
    let ratio = f64::from(width.max(1)) / f64::from(height.max(1));
    let distance = |size: &(u32, u32)| (ratio - f64::from(size.0) / f64::from(size.1)).abs();
    let nearest = KONTEXT_SIZES.into_iter().min_by(|left, right| distance(left).total_cmp(&distance(right)));
    nearest.unwrap_or((1024, 1024))
}

/// A number of images, in words.
#[must_use]
pub fn count_in_words(counts: &RangeInclusive<usize>) -> String {
    match (*counts.start(), *counts.end()) {
        (min, max) if min == max => max.to_string(),
        (min, max) => format!("from {min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parsed_as_they_are_written() {
        for role in ImageRole::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for kind in Preprocess::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("Input".parse::<ImageRole>().is_err() && "edges".parse::<Preprocess>().is_err());
    }

    #[test]
    fn a_mode_is_a_name_or_a_number() {
        for (text, number) in [("canny", 0), ("low_quality", 6), ("4", 4), ("9", 9)] {
            assert_eq!(text.parse(), Ok(ControlMode(number)));
        }
        assert_eq!((ControlMode(4).to_string(), ControlMode(9).to_string()), ("pose".into(), "9".into()));
        for text in ["", "-1", "edges", "1.5"] {
            assert!(text.parse::<ControlMode>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_control_image_acts_in_the_steps_between_start_and_end() {
        let image = Arc::new(RgbImage::new(1, 1, vec![0; 3]).expect("three bytes"));
        let (controlnet, mode, is_depth_estimated, scale) = (None, None, false, 1.0);
        let control = ControlImage { image, controlnet, mode, is_depth_estimated, scale, start: 0.25, end: 0.75 };
        let acting: Vec<usize> = (0..4).filter(|index| control.acts_in(*index, 4)).collect();
        assert_eq!(acting, [1, 2]);
        let all = ControlImage { start: 0.0, end: 1.0, ..control };
        assert!((0..7).all(|index| all.acts_in(index, 7)));
    }

    #[test]
    fn a_reference_gets_the_nearest_of_the_trained_sizes() {
        for (image, size) in [
            ((1024, 1024), (1024, 1024)),
            ((64, 64), (1024, 1024)),
            ((1920, 1080), (1392, 752)),
            ((1080, 1920), (752, 1392)),
            ((10_000, 1), (1568, 672)),
            ((1, 10_000), (672, 1568)),
            ((0, 0), (1024, 1024)),
        ] {
            assert_eq!(kontext_size(image), size, "{image:?}");
        }
    }
}
