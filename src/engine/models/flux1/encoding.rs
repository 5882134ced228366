//! Encoding the images of a request, part by part.

use candle_core::Result;

use super::image::Image;
use super::vae::{self, Advanced, Encoding};
use super::{Flux1, Outcome};
use crate::engine::device::device_error;
use crate::engine::noise;

impl Flux1 {
    /// Runs the next part of encoding an image's images. `false`: there is none left.
    ///
    /// # Errors
    /// When the device is out of memory or fails; the image is as before then.
    pub(crate) fn encode_part(&self, image: &mut Image) -> Outcome<bool> {
        // The prompts first: they are small, and a mistake in them shows at once.
        if self.encode_style(image)? {
            self.encode_next(image)?;
        }
        Ok(!image.is_encoded())
    }

    /// Runs the next part of the encoder. What an image is encoded from may have to be made first.
    fn encode_next(&self, image: &mut Image) -> Outcome<()> {
        let Some(part) = image.pending.first() else { return Ok(()) };
        let begun = match image.pending.begun() {
            Some(begun) => begun.clone(),
            None if part.is_depth_estimated => {
                let map = self.depth_map(&part.image)?;
                Encoding::of(&vae::pixels_of(&map, &self.device).map_err(device_error)?)
            }
            None => Encoding::of(&part.pixels(&self.device).map_err(device_error)?),
        };
        self.encode_from(image, &begun).map_err(device_error)
    }

    fn encode_from(&self, image: &mut Image, begun: &Encoding) -> Result<()> {
        let pending = &image.pending;
        let Some(part) = pending.first() else { return Ok(()) };
        let moments = match self.encoder.advance(begun)? {
            Advanced::Further(next) => {
                image.pending.note(next);
                return Ok(());
            }
            Advanced::Complete(moments) => moments,
        };
        let grid = part.grid(image.grid.channels);
        let latents = match part.draw {
            None => self.encoder.mode(&moments)?,
            Some(skipped) => {
                let normal = noise::standard_normal(pending.seed(), skipped, grid.elements());
                self.encoder.sample(&moments, &grid.latents(normal, &self.device)?)?
            }
        };
        image.take_encoded(grid.pack(&latents)?)
    }
}
