//! ControlNets in the pipeline: what control images become when a request is admitted, and what they add in a step.

use std::borrow::Cow;

use candle_core::{Result, Tensor, bail};

use super::controls::{Control, Controls, residuals_left};
use super::image::{Image, TokenGrid};
use super::text::PromptEmbedding;
use super::transformer::{Controlled, Residuals};
use super::{Flux1, Outcome, vae};
use crate::domain::conditioning::ControlImage;
use crate::domain::engine::EngineError;
use crate::domain::spec::GenerateSpec;
use crate::engine::device::device_error;
use crate::engine::noise;

impl Flux1 {
    /// The control images of a request that ControlNets read. They are not encoded yet: [`Self::encode_controls`].
    ///
    /// The nets read the prompt, also where the transformer reads a negative prompt in a second pass: both get the same residuals
    /// (`FluxControlNetPipeline` of diffusers).
    ///
    /// # Errors
    /// When there is no such net, it lacks the mode, or the device fails.
    pub(super) fn controls(
        &self,
        spec: &GenerateSpec,
        prompt: &PromptEmbedding,
        grid: TokenGrid,
    ) -> Outcome<Controls> {
        let mut all = Vec::new();
        for (number, control) in spec.controls().iter().enumerate() {
            let Some(name) = &control.controlnet else { continue };
            let net = self.controlnets.iter().position(|net| net.name == *name);
            let net = net.ok_or_else(|| EngineError::Request(self.unknown_net(name)))?;
            all.push(self.control(control, (number, net), spec, (prompt, grid))?);
        }
        let wanted = residuals_left(all.iter().map(|control| self.controlnets[control.net].config.blocks()));
        Ok(Controls { all, wanted })
    }

    fn control(
        &self,
        control: &ControlImage,
        (number, net): (usize, usize),
        spec: &GenerateSpec,
        (prompt, grid): (&PromptEmbedding, TokenGrid),
    ) -> Outcome<Control> {
        let model = &self.controlnets[net];
        if let Some(reason) = model.mode_error(control.mode) {
            return Err(EngineError::Request(reason));
        }
        let embeddings = (&prompt.sequence, &prompt.pooled);
        let prompt = model.prompt(embeddings, spec.guidance(), control.mode, (grid.rows, grid.columns));
        let steps = spec.steps() as usize;
        // Without a scale the net would add zeros.
        let acts = (0..steps).map(|index| control.scale != 0.0 && control.acts_in(index, steps)).collect();
        let prompt = prompt.map_err(device_error)?;
        Ok(Control { number, net, latents: None, prompt, scale: control.scale, acts })
    }

    fn unknown_net(&self, name: &str) -> String {
        let known: Vec<String> = self.controlnets.iter().map(|net| format!("`{}`", net.name)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("this model has no ControlNet `{name}`; it has {known}")
    }

    /// Encodes the control images that ControlNets read in any step and that are not encoded yet.
    ///
    /// # Errors
    /// When the depth of one cannot be estimated, or the device fails.
    pub(super) fn encode_controls(&self, spec: &GenerateSpec, grid: TokenGrid, controls: &mut Controls) -> Outcome<()> {
        for control in controls.missing() {
            let image = self.control_map(&spec.controls()[control.number])?;
            let noise = control_noise(spec, control.number, grid);
            let latents = grid.latents(noise, &self.device).and_then(|noise| self.control_latents(&image, &noise));
            control.latents = Some(latents.map_err(device_error)?);
        }
        Ok(())
    }

    /// The map of a control image: as it was given, or its depth.
    #[expect(clippy::unused_self, reason = "the estimator of depth belongs to the model")]
    fn control_map<'a>(&self, control: &'a ControlImage) -> Outcome<Cow<'a, ControlImage>> {
        if control.is_depth_estimated {
            // Here the estimator of depth is asked: `ControlImage { image, is_depth_estimated: false, ..control.clone() }`.
            return Err(EngineError::Request(
                "this model has nothing that estimates depth: send a depth map instead".to_owned(),
            ));
        }
        Ok(Cow::Borrowed(control))
    }

    /// A control map in the output size -> its latents as packed tokens, `[image tokens, channels]`, f32: a sample of the
    /// autoencoder's distribution by `noise [1, latent channels, height / 8, width / 8]` (`prepare_image` of diffusers'
    /// `FluxControlNetPipeline`, and of `FluxControlPipeline`).
    ///
    /// # Errors
    /// When the noise is not of the map's size, or the device is out of memory.
    pub(crate) fn control_latents(&self, control: &ControlImage, noise: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.encode(&vae::pixels_of(&control.image, &self.device)?)?;
        TokenGrid::of_latents(noise)?.pack(&self.encoder.sample(&moments, noise)?)
    }

    /// What ControlNets add to each of `images` in its next step; `None` where none acts.
    ///
    /// Control images are computed in rounds: in each, one of every image, in the order of its request; those of a round that have
    /// the same net are one batch. So no batch has more images than the step, and an image's sum does not depend on the others.
    ///
    /// # Errors
    /// When a control image was not encoded, or the device is out of memory.
    pub(crate) fn residuals(&self, images: &[&Image]) -> Result<Vec<Option<Residuals>>> {
        let mut sums: Vec<Option<Residuals>> = images.iter().map(|_| None).collect();
        let acting: Vec<Vec<&Control>> =
            images.iter().map(|image| image.controls.acting(image.steps_done).collect()).collect();
        let rounds = acting.iter().map(Vec::len).max().unwrap_or(0);
        for round in 0..rounds {
            for (number, net) in self.controlnets.iter().enumerate() {
                let of_net: Vec<(usize, Controlled)> = acting
                    .iter()
                    .enumerate()
                    .filter_map(|(index, controls)| {
                        let control = controls.get(round).filter(|control| control.net == number)?;
                        Some(controlled(images[index], control).map(|part| (index, part)))
                    })
                    .collect::<Result<_>>()?;
                if of_net.is_empty() {
                    continue;
                }
                let parts: Vec<Controlled> = of_net.iter().map(|(_, part)| *part).collect();
                for ((index, _), residuals) in of_net.iter().zip(net.residuals(&parts)?) {
                    match &mut sums[*index] {
                        Some(sum) => sum.add(residuals)?,
                        none => *none = Some(residuals),
                    }
                }
            }
        }
        Ok(sums)
    }
}

/// The random numbers that the seed's generator gives first: those of each control image, for all images of a batch
/// (`FluxControlNetPipeline` of diffusers).
fn control_noise(spec: &GenerateSpec, number: usize, grid: TokenGrid) -> Vec<f32> {
    let before = number * spec.batch_size() as usize + spec.image_index() as usize;
    noise::standard_normal(spec.seed(), before * grid.elements(), grid.elements())
}

/// A control image in the next step of its image.
fn controlled<'a>(image: &'a Image, control: &'a Control) -> Result<Controlled<'a>> {
    let Some(latents) = &control.latents else { bail!("a control image was not encoded before its first step") };
    Ok(Controlled {
        latents: &image.latents,
        control: latents,
        prompt: &control.prompt,
        sigma: image.sigmas[image.steps_done],
        scale: control.scale,
        wanted: image.controls.wanted,
    })
}
