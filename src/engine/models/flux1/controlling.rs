//! ControlNets in the pipeline: what control images become when a request is admitted, and what they add in a step.

use candle_core::{Result, bail};

use super::controls::{Control, Controls, residuals_left};
use super::grid::TokenGrid;
use super::image::Image;
use super::text::PromptEmbedding;
use super::transformer::{Controlled, Residuals};
use super::{Flux1, Outcome};
use crate::domain::conditioning::ControlImage;
use crate::domain::engine::EngineError;
use crate::domain::spec::GenerateSpec;
use crate::engine::device::device_error;

impl Flux1 {
    /// The control images of a request that ControlNets read. They are not encoded yet: [`super::conditioning::Pending`].
    ///
    /// The nets read the prompt, also where the transformer reads a negative prompt in a second pass: both get the same residuals
    /// (`FluxControlNetPipeline` of diffusers).
    ///
    /// # Errors
    /// When there is no such net, it lacks the mode, or the device fails.
    pub(super) fn controls(&self, spec: &GenerateSpec, prompt: &PromptEmbedding, grid: TokenGrid) -> Outcome<Controls> {
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
        Ok(Control { number, net, mode: control.mode, latents: None, prompt, scale: control.scale, acts })
    }

    /// Gives another prompt to the nets that read control images.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn prompt_nets(
        &self,
        controls: &mut Controls,
        prompt: &PromptEmbedding,
        (guidance, grid): (f64, TokenGrid),
    ) -> Result<()> {
        for control in &mut controls.all {
            let net = &self.controlnets[control.net];
            let embeddings = (&prompt.sequence, &prompt.pooled);
            control.prompt = net.prompt(embeddings, guidance, control.mode, (grid.rows, grid.columns))?;
        }
        Ok(())
    }

    fn unknown_net(&self, name: &str) -> String {
        let known: Vec<String> = self.controlnets.iter().map(|net| format!("`{}`", net.name)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("this model has no ControlNet `{name}`; it has {known}")
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
