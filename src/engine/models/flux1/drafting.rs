//! Drafts: an image as its steps would end if they went on as the last one, decoded while they go on. Nothing of the image
//! changes, and previews learn nothing from it.

use super::vae::{self, Decoding};
use super::{Flux1, Image, Outcome};
use crate::domain::engine::EngineError;
use crate::domain::image::RgbImage;
use crate::engine::device::device_error;

/// A draft that is partly decoded.
pub(crate) struct Drafting(Decoding);

impl Flux1 {
    /// Begins to decode what an image would be now. `None` before its first step.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn begin_draft(&self, image: &Image) -> Outcome<Option<Drafting>> {
        let Some(latents) = image.expected().map_err(device_error)? else { return Ok(None) };
        let decoding = image.grid.unpack(&latents).and_then(|latents| self.decoder.begin(&latents));
        decoding.map(|decoding| Some(Drafting(decoding))).map_err(device_error)
    }

    /// Runs the decoder's next part. `false`: there is none left.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn draft_part(&self, Drafting(decoding): Drafting) -> Outcome<(Drafting, bool)> {
        let (decoding, is_left) = self.decoder.advance(decoding).map_err(device_error)?;
        Ok((Drafting(decoding), is_left))
    }

    /// Decodes what is left of the draft of an image.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] when a pixel is not finite; else when the device is out of memory or fails.
    pub(crate) fn complete_draft(&self, Drafting(decoding): Drafting, image: &Image) -> Outcome<RgbImage> {
        let pixels = self.decoder.complete(decoding).map_err(device_error)?;
        let bytes = vae::to_rgb_bytes(&pixels).map_err(device_error)?.ok_or(EngineError::NotFinite)?;
        RgbImage::new(image.width, image.height, bytes)
            .ok_or_else(|| EngineError::Fatal("the decoder returned a draft of another size".to_owned()))
    }
}
