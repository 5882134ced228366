//! Which requests an engine takes, and what is left to do of an image before its first step.

use super::FluxEngine;
use super::adapted::{AdapterCache, AdapterSet};
use super::models::flux1::{Flux1, Image, refusal, refusal_by_adapters};
use crate::domain::engine::{EngineError, Slot};
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;

impl FluxEngine {
    /// Refuses a request that does not fit, or whose images the checkpoint does not read.
    pub(super) fn check(&self, spec: &GenerateSpec) -> Result<(), EngineError> {
        if let Some(reason) = refusal(spec, self.model.reads()).or_else(|| self.excess(spec)) {
            return Err(EngineError::Request(reason));
        }
        Ok(())
    }

    /// Refuses a request whose adapters and control images do not go together.
    pub(super) fn check_adapters(&self, spec: &GenerateSpec, adapters: &AdapterSet) -> Result<(), EngineError> {
        refusal_by_adapters(spec, self.model.reads(), adapters)
            .map_or(Ok(()), |reason| Err(EngineError::Request(reason)))
    }

    /// What of a request does not fit in the device's memory, if anything.
    fn excess(&self, spec: &GenerateSpec) -> Option<String> {
        let is_encoded = spec.input_image().is_some() || !spec.controls().is_empty();
        let (pixels_max, kind) = match spec.input_image() {
            _ if !is_encoded => (self.pixels.output, ""),
            Some(_) => (self.pixels.output.min(self.pixels.input), " with an input image"),
            None => (self.pixels.output.min(self.pixels.input), " with a control image"),
        };
        let excess = |what: String, pixels_max: usize| {
            format!("{what} do not fit in the device's memory: at most {pixels_max} pixels do")
        };
        let (width, height) = (spec.width(), spec.height());
        if width as usize * height as usize > pixels_max {
            return Some(excess(format!("{width}x{height} pixels{kind}"), pixels_max));
        }
        let is_too_large = |image: &&RgbImage| image.width() as usize * image.height() as usize > self.pixels.input;
        if let Some(image) = spec.references().iter().map(|image| &**image).find(is_too_large) {
            let what = format!("{}x{} pixels of a reference image", image.width(), image.height());
            return Some(excess(what, self.pixels.input));
        }
        let (tokens, tokens_max) = (spec.step_tokens(), self.limits.step_tokens_max);
        (spec.reference_tokens() > 0 && tokens > tokens_max).then(|| {
            format!(
                "it takes {tokens} tokens per step with its reference images, and this device holds {tokens_max}: use fewer or \
                 smaller ones"
            )
        })
    }

    /// Encodes what is left of the images of some slots. One that fails is as before.
    pub(super) fn encode_rest(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let Self { model, adapters, images, .. } = self;
        for slot in slots {
            if let Some(image) = images.get_mut(slot) {
                while encode_part(model, adapters, image)? {}
            }
        }
        Ok(())
    }
}

/// Runs the next part of encoding an image's images; adapters that no image uses leave where it needs their memory. `false`: there
/// is none left.
pub(super) fn encode_part(model: &Flux1, adapters: &mut AdapterCache, image: &mut Image) -> Result<bool, EngineError> {
    match model.encode_part(image) {
        Err(EngineError::OutOfMemory(_)) if adapters.drop_unused() => model.encode_part(image),
        outcome => outcome,
    }
}
