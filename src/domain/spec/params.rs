//! A request before it is checked.

use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{GivenImage, ImageRole, kontext_size};
use crate::domain::model::ModelCard;
use crate::domain::overlay::Overlay;
use crate::domain::step_cache::StepCache;

/// Unchecked parameters of a request. `None` means the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateParams {
    /// What to generate.
    pub prompt: String,
    /// Given to T5 instead of `prompt`, which then only CLIP reads. Empty counts as absent.
    pub prompt_2: Option<String>,
    /// What to steer away from; turns on true classifier-free guidance (two passes per step).
    pub negative_prompt: Option<String>,
    /// Strength of true classifier-free guidance; above 1.
    pub true_cfg_scale: Option<f64>,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Value fed to the guidance embedding.
    pub guidance: Option<f64>,
    /// Seed of the noise.
    pub seed: u64,
    /// T5 tokens, at most [`SEQUENCE_LENGTH_MAX`](super::SEQUENCE_LENGTH_MAX).
    pub sequence_length: Option<usize>,
    /// Its images, of any size until the request is checked.
    pub images: Vec<GivenImage>,
    /// Only the region around the mask is generated, with this many pixels around it, and put back into the input image.
    pub mask_padding: Option<u32>,
    /// Where that region is put back. Made of the images and `mask_padding`, before the request is checked.
    pub overlay: Option<Overlay>,
    /// A lossy cache between its steps.
    pub step_cache: Option<StepCache>,
    /// How far to depart from the input image; above 0, at most 1.
    pub strength: Option<f64>,
    /// Adapters, at most [`ADAPTERS_MAX`](crate::domain::adapter::ADAPTERS_MAX).
    pub loras: Vec<AdapterUse>,
}

impl GenerateParams {
    /// The first image of a role.
    #[must_use]
    pub fn image(&self, role: ImageRole) -> Option<&GivenImage> {
        self.images.iter().find(|given| given.role == role)
    }

    /// How many images of a role there are.
    #[must_use]
    pub fn count(&self, role: ImageRole) -> usize {
        self.images.iter().filter(|given| given.role == role).count()
    }

    /// Fills in missing width and height: the model's, or as near to those of the input, control or reference image as the
    /// model's limits allow. If one side is given, the other follows the image's proportions.
    pub fn settle_size(&mut self, card: &ModelCard) {
        let given = (self.width, self.height);
        let sides = |role| self.image(role).map(|given| (given.image.width(), given.image.height()));
        let changed = sides(ImageRole::Input).or_else(|| sides(ImageRole::Control));
        let (width, height) = match (changed, sides(ImageRole::Reference)) {
            (None, Some(image)) if given == (None, None) => card.limits.size_like(kontext_size(image), given),
            (Some(image), _) | (None, Some(image)) => card.limits.size_like(image, given),
            (None, None) => (card.defaults.width, card.defaults.height),
        };
        self.width.get_or_insert(width);
        self.height.get_or_insert(height);
    }
}
