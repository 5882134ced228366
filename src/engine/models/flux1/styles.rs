//! What is made of a request's images beside the model: the embeddings of style images, and depth maps.

use candle_core::{DType, Result, Tensor};

use super::image::{Image, Pass};
use super::text::PromptEmbedding;
use super::{Flux1, Outcome};
use crate::domain::engine::EngineError;
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;
use crate::engine::adapted::AdapterSet;
use crate::engine::device::device_error;
use crate::engine::vision::{DepthEstimator, StyleEncoder};

impl Flux1 {
    fn style_encoder(&self) -> Outcome<&StyleEncoder> {
        let missing =
            || EngineError::Request("style images need FLUX.1-Redux, which is not loaded beside this model".to_owned());
        self.vision.styles.as_ref().ok_or_else(missing)
    }

    fn depth(&self) -> Outcome<&DepthEstimator> {
        let reason = "no model that estimates depth is loaded beside this model: send a depth map instead";
        self.vision.depth.as_ref().ok_or_else(|| EngineError::Request(reason.to_owned()))
    }

    /// Checks that what a request needs for its images is loaded beside the model, and takes them.
    ///
    /// # Errors
    /// [`EngineError::Request`] with the reason.
    pub(super) fn check_vision(&self, spec: &GenerateSpec) -> Outcome<()> {
        if spec.controls().iter().any(|control| control.is_depth_estimated) {
            self.depth()?;
        }
        self.check_styles(spec)
    }

    fn check_styles(&self, spec: &GenerateSpec) -> Outcome<()> {
        if spec.styles().is_empty() {
            return Ok(());
        }
        let encoder = self.style_encoder()?;
        let (side, tokens) = (encoder.side(), encoder.tokens());
        let is_other = |image: &RgbImage| image.width() as usize != side || image.height() as usize != side;
        if let Some(style) = spec.styles().iter().find(|style| is_other(&style.image)) {
            let (width, height) = (style.image.width(), style.image.height());
            let reason = format!("a style image must have {side}x{side} pixels here, not {width}x{height}");
            return Err(EngineError::Request(reason));
        }
        if spec.style_tokens() != tokens {
            let reason = format!("style images take {tokens} tokens here, not {}", spec.style_tokens());
            return Err(EngineError::Request(reason));
        }
        Ok(())
    }

    /// The rows that FLUX.1-Redux makes of an image, `[style tokens, text width]`.
    ///
    /// # Errors
    /// When it is not loaded, the image has another size, or the device is out of memory or fails.
    pub(crate) fn style_embedding(&self, image: &RgbImage) -> Outcome<Tensor> {
        self.style_encoder()?.embed(image).map_err(device_error)
    }

    /// The embedding of a prompt of a request: what CLIP reads, and what T5 reads. Beside style images an empty prompt is zeros, as
    /// in diffusers' prior without text encoders.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub(super) fn embed_for(
        &mut self,
        spec: &GenerateSpec,
        (prompt, t5_prompt): (&str, &str),
        adapters: &AdapterSet,
    ) -> Outcome<PromptEmbedding> {
        let length = spec.sequence_length();
        if spec.styles().is_empty() || !prompt.is_empty() {
            return self.embed(prompt, t5_prompt, length, adapters);
        }
        let zeros =
            |rows: usize, width: usize| Tensor::zeros((rows, width), DType::F32, &self.device).map_err(device_error);
        let pooled = zeros(1, self.configs.clip.hidden_size)?;
        if t5_prompt.is_empty() {
            return Ok(PromptEmbedding { pooled, sequence: zeros(length, self.configs.t5.d_model)? });
        }
        Ok(PromptEmbedding { pooled, ..self.embed(prompt, t5_prompt, length, adapters)? })
    }

    /// Embeds the next of an image's style images; behind the last one, both of its prompts have them. `true`: none is left.
    ///
    /// # Errors
    /// As [`Self::style_embedding`].
    pub(crate) fn encode_style(&self, image: &mut Image) -> Outcome<bool> {
        let Some(pending) = &mut image.styles else { return Ok(true) };
        if let Some(style) = pending.first() {
            let rows = self.style_embedding(&style.image)?;
            if !pending.take(rows) {
                return Ok(false);
            }
        }
        let embeddings = pending.combined().map_err(device_error)?;
        let passes = embeddings.iter().map(|embedding| self.pass(embedding, pending.guidance, &image.adapters));
        let passes: Vec<Pass> = passes.collect::<Result<_>>().map_err(device_error)?;
        if let Some(embedding) = embeddings.first() {
            self.prompt_nets(&mut image.controls, embedding, (pending.guidance, image.grid)).map_err(device_error)?;
        }
        image.styles = None;
        for (place, pass) in image.passes_mut().zip(passes) {
            *place = pass;
        }
        Ok(true)
    }

    /// The depth map of an image, in its size.
    ///
    /// # Errors
    /// When no model for it is loaded, or it fails.
    pub(crate) fn depth_map(&self, image: &RgbImage) -> Outcome<RgbImage> {
        self.depth()?.map(image)
    }
}
