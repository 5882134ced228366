//! A model's card: what clients may ask of it and what they get when they do not say.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::ids::ModelId;

/// What the catalog says of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The name clients use.
    pub id: ModelId,
    /// What a person should know before taking its images for more than they are.
    pub notice: Option<String>,
    /// Used for fields that a request leaves out.
    pub defaults: ParameterDefaults,
    /// What a request may ask for.
    pub limits: ParameterLimits,
    /// Fewest input images a request must bring.
    pub input_images_min: usize,
    /// Most input images a request may bring; 0 for plain text-to-image.
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
    /// Most pixels in one image (width × height).
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

impl ParameterLimits {
    /// The size to draw an image in that starts from one of size `image`: as near to that as the limits come, in its
    /// proportions, rounded down to whole multiples. Where one side is `given`, it sets the scale.
    #[must_use]
    pub fn size_like(&self, image: (u32, u32), given: (Option<u32>, Option<u32>)) -> (u32, u32) {
        /// What a product of floats may fall short of a whole number by.
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
                // Where both cannot be had, the larger side counts: the other one is cut to its limit below.
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

impl ModelFiles {
    /// Which state of the model's repository they are, where their place says so: the folders of the Hugging Face cache
    /// are named `snapshots/COMMIT`.
    #[must_use]
    pub fn revision(&self) -> Option<String> {
        /// Hexadecimal digits of a commit's name.
        const COMMIT_DIGITS: usize = 40;
        let Self::Directory(directory) = self else { return None };
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
        let whole = |width, height| limits.size_like((width, height), (None, None));
        assert_eq!(whole(128, 96), (128, 96), "as it is");
        assert_eq!(whole(135, 100), (128, 96), "rounded down");
        assert_eq!(whole(4000, 3000), (256, 192), "as many pixels as there may be");
        assert_eq!(whole(3000, 3000), (208, 208), "not more pixels than there may be");
        assert_eq!(whole(2560, 640), (256, 64));
        assert_eq!(whole(20, 40), (64, 128), "enlarged");
        assert_eq!(whole(1, 10_000), (64, 256), "nothing fits: each side within its limit");
        assert_eq!(whole(0, 0), (64, 64));
        assert_eq!(limits.size_like((400, 200), (Some(128), None)), (128, 64));
        assert_eq!(limits.size_like((400, 200), (None, Some(96))), (192, 96));
        assert_eq!(limits.size_like((400, 200), (Some(u32::MAX), None)).1, 256, "what is given is refused elsewhere");
    }
}
