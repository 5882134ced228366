//! A model's card: what requests may ask of it, and its defaults.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::conditioning::{AttachedCards, CONTROLS_MAX, Conditioning, IMAGES_MAX, ImageRole, STYLES_MAX};
use crate::domain::ids::ModelId;

/// The catalog's entry for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The name clients use.
    pub id: ModelId,
    /// What people should know before relying on its images.
    pub notice: Option<String>,
    /// Used for fields that a request leaves out.
    pub defaults: ParameterDefaults,
    /// What a request may ask for.
    pub limits: ParameterLimits,
    /// What its transformer takes beside the prompt.
    pub conditioning: Conditioning,
    /// Fewest images of a request in the model's main role.
    pub input_images_min: usize,
    /// Maximum images of a request in the model's main role; 0 for text-to-image only.
    pub input_images_max: usize,
    /// What is loaded beside it.
    pub attached: AttachedCards,
    /// Longest prompt, in Unicode characters.
    pub prompt_chars_max: usize,
    /// T5 tokens a prompt is padded or cut to. FLUX has no text mask, so this is part of the model.
    pub sequence_length: usize,
    /// Scale of true classifier-free guidance, used when a request has a negative prompt.
    pub true_cfg_scale: f64,
}

impl ModelCard {
    /// How many images of a role a request has.
    #[must_use]
    pub fn images(&self, role: ImageRole) -> RangeInclusive<usize> {
        let (min, max) = (self.input_images_min, self.input_images_max);
        let is_prompted = matches!(self.conditioning, Conditioning::Prompt | Conditioning::References);
        match (role, self.conditioning) {
            (ImageRole::Input, Conditioning::Prompt | Conditioning::Fill)
            | (ImageRole::Reference, Conditioning::References)
            | (ImageRole::Control, Conditioning::Control) => min..=max,
            // It may start from an image, too.
            (ImageRole::Input | ImageRole::Mask, Conditioning::References) => 0..=usize::from(max > 0),
            (ImageRole::Mask, Conditioning::Prompt) => 0..=max.min(1),
            (ImageRole::Mask, Conditioning::Fill) => 1..=1,
            (ImageRole::Control, _) if is_prompted && !self.attached.controlnets.is_empty() => 0..=CONTROLS_MAX,
            (ImageRole::Style, _) if is_prompted && self.attached.style.is_some() => 0..=STYLES_MAX,
            _ => 0..=0,
        }
    }

    /// Maximum images of a request, of all roles.
    #[must_use]
    pub fn images_max(&self) -> usize {
        ImageRole::ALL.into_iter().map(|role| *self.images(role).end()).sum::<usize>().min(IMAGES_MAX)
    }
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
    /// Maximum pixels in one image (width × height).
    pub pixels_max: u32,
    /// Fewest denoising steps.
    pub steps_min: u32,
    /// Maximum denoising steps.
    pub steps_max: u32,
    /// Smallest guidance value.
    pub guidance_min: f64,
    /// Largest guidance value.
    pub guidance_max: f64,
}

impl ParameterLimits {
    /// The output size for an input image of size `image`: as near to it as the limits allow, in its proportions,
    /// rounded down to whole multiples. If one side is `given`, it sets the scale.
    #[must_use]
    pub fn size_like(&self, image: (u32, u32), given: (Option<u32>, Option<u32>)) -> (u32, u32) {
        /// By how much a float product may fall short of an integer.
        const ROUNDING: f64 = 1e-6;
        let (width, height) = (f64::from(image.0.max(1)), f64::from(image.1.max(1)));
        let scale = match given {
            (Some(given), _) => f64::from(given) / width,
            (None, Some(given)) => f64::from(given) / height,
            (None, None) => {
                let least = (f64::from(self.width_min) / width).max(f64::from(self.height_min) / height);
                let most = (f64::from(self.width_max) / width)
                    .min(f64::from(self.height_max) / height)
                    .min((f64::from(self.pixels_max) / (width * height)).sqrt());
                // Where both limits cannot hold, the larger side counts: the other one is clamped below.
                1.0_f64.max(least).min(most)
            }
        };
        let side = |pixels: f64, min: u32, max: u32| {
            let pixels = (pixels * scale + ROUNDING) as u32;
            (pixels - pixels % self.size_multiple_of).clamp(min, max)
        };
        (side(width, self.width_min, self.width_max), side(height, self.height_min, self.height_max))
    }
}

/// A checkpoint file compiled into the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// Path inside the checkpoint folder, with `/`: `transformer/config.json`.
    pub path: &'static str,
    /// The file's content.
    pub bytes: &'static [u8],
}

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// A folder on disk, or one file with at least the transformer.
    Directory(PathBuf),
    /// Compiled into the program.
    Embedded(&'static [EmbeddedFile]),
    /// A folder or a file that lacks something, and what has it.
    Completed(Box<CompletedFiles>),
}

/// A folder or a file with a model's transformer, and where its other parts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedFiles {
    /// The folder or the file.
    pub path: PathBuf,
    /// Files, or folders in the diffusers layout, of the text encoders. They replace those at `path`.
    pub text_encoders: Vec<PathBuf>,
    /// The autoencoder's file or folder. It replaces that at `path`.
    pub vae: Option<PathBuf>,
    /// A complete checkpoint, for whatever is not in the others.
    pub base: Option<ModelFiles>,
    /// What is loaded beside it.
    pub attachments: Attachments,
}

/// Models that are loaded beside a checkpoint, for images of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachments {
    /// ControlNets: the name that requests use, and the folder or file.
    pub controlnets: Vec<(Arc<str>, PathBuf)>,
    /// FLUX.1-Redux: its folder, with its image encoder.
    pub redux: Option<PathBuf>,
    /// Depth-Anything V2 small: its folder or file.
    pub depth: Option<PathBuf>,
}

/// Maximum ControlNets of a model.
pub const CONTROLNETS_MAX: usize = 16;

/// Longest name of a ControlNet, in characters.
pub const CONTROLNET_NAME_CHARS_MAX: usize = 64;

impl Attachments {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with the ControlNets' names or their number, if anything. A name goes into requests, responses and logs.
    #[must_use]
    pub fn name_fault(&self) -> Option<String> {
        if self.controlnets.len() > CONTROLNETS_MAX {
            return Some(format!("must be at most {CONTROLNETS_MAX} ControlNets, not {}", self.controlnets.len()));
        }
        let is_fit = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        let is_name = |name: &str| (1..=CONTROLNET_NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_fit);
        let names = || self.controlnets.iter().map(|(name, _)| name);
        if let Some(name) = names().find(|name| !is_name(name)) {
            let longest = CONTROLNET_NAME_CHARS_MAX;
            return Some(format!("`{name}` is no name: use up to {longest} letters, digits, `-`, `_` and `.`"));
        }
        let is_taken = |(index, name): &(usize, &Arc<str>)| names().take(*index).any(|earlier| earlier == *name);
        names().enumerate().find(is_taken).map(|(_, name)| format!("names the ControlNet `{name}` twice"))
    }
}

impl ModelFiles {
    /// What is loaded beside the checkpoint.
    #[must_use]
    pub fn attachments(&self) -> Option<&Attachments> {
        match self {
            Self::Completed(files) => Some(&files.attachments),
            Self::Directory(_) | Self::Embedded(_) => None,
        }
    }

    /// The folder or file on disk that is served.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Completed(files) => Some(&files.path),
            Self::Embedded(_) => None,
        }
    }

    /// The revision of the model's repository, where the path tells it: folders of the Hugging Face cache are named
    /// `snapshots/COMMIT`.
    #[must_use]
    pub fn revision(&self) -> Option<String> {
        /// Hexadecimal digits of a commit hash.
        const COMMIT_DIGITS: usize = 40;
        let directory = self.path()?;
        let name = directory.file_name()?.to_str()?;
        let is_commit = name.len() == COMMIT_DIGITS && name.bytes().all(|digit| digit.is_ascii_hexdigit());
        let is_snapshot = directory.parent()?.file_name()?.to_str()? == "snapshots";
        (is_commit && is_snapshot).then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_hub_cache_names_its_revision() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let revision = |path: String| ModelFiles::Directory(path.into()).revision();
        assert_eq!(revision(format!("/hub/models--a--b/snapshots/{commit}")).as_deref(), Some(commit));
        assert_eq!(revision(format!("hub/snapshots/{commit}/")).as_deref(), Some(commit));
        for path in [format!("/hub/{commit}"), "/hub/snapshots/main".into(), commit.to_owned(), "/".into()] {
            assert_eq!(revision(path), None);
        }
        assert_eq!(ModelFiles::Embedded(&[]).revision(), None);
    }

    #[test]
    fn controlnets_have_names_of_their_own() {
        let fault = |names: &[&str]| {
            let controlnets = names.iter().map(|name| (Arc::from(*name), PathBuf::from("/net"))).collect();
            Attachments { controlnets, ..Attachments::default() }.name_fault()
        };
        assert_eq!(fault(&[]), None);
        assert_eq!(fault(&["canny", "union-pro_2.0"]), None);
        assert!(fault(&["a", "b", "a"]).is_some_and(|fault| fault.contains("`a` twice")));
        for name in ["", "two words", "a/b", "a\nb", &"a".repeat(CONTROLNET_NAME_CHARS_MAX + 1)] {
            assert!(fault(&[name]).is_some_and(|fault| fault.contains("is no name")), "{name}");
        }
        assert!(fault(&["a"; CONTROLNETS_MAX + 1]).is_some_and(|fault| fault.contains("at most 16")));
    }

    #[test]
    fn an_image_keeps_its_proportions_within_the_limits() {
        let limits = ParameterLimits {
            width_min: 64,
            width_max: 256,
            height_min: 64,
            height_max: 256,
            size_multiple_of: 16,
            pixels_max: 49_152,
            steps_min: 1,
            steps_max: 100,
            guidance_min: 0.0,
            guidance_max: 30.0,
        };
        let size_of = |width, height| limits.size_like((width, height), (None, None));
        assert_eq!(size_of(128, 96), (128, 96), "unchanged");
        assert_eq!(size_of(135, 100), (128, 96), "rounded down");
        assert_eq!(size_of(4000, 3000), (256, 192), "as many pixels as allowed");
        assert_eq!(size_of(3000, 3000), (208, 208), "not more pixels than allowed");
        assert_eq!(size_of(2560, 640), (256, 64));
        assert_eq!(size_of(20, 40), (64, 128), "enlarged");
        assert_eq!(size_of(1, 10_000), (64, 256), "nothing fits: each side within its limit");
        assert_eq!(size_of(0, 0), (64, 64));
        assert_eq!(limits.size_like((400, 200), (Some(128), None)), (128, 64));
        assert_eq!(limits.size_like((400, 200), (None, Some(96))), (192, 96));
        assert_eq!(
            limits.size_like((400, 200), (Some(u32::MAX), None)).1,
            256,
            "a bad given side is refused elsewhere"
        );
    }
}
