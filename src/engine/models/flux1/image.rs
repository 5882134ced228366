//! An image between two steps: its latents, its position in the schedule, and what conditions it.

use std::collections::VecDeque;

use candle_core::{Result, Tensor};

use super::conditioning::{Goal, Pending, fill_channels, latent_mask};
use super::controls::Controls;
use super::grid::TokenGrid;
use super::text::styles::PendingStyles;
use super::transformer::{CacheOutcome, CacheUse, Conditioned, Remembered, Sequence};
use super::vae::Decoding;
use crate::domain::step_cache::StepCache;
use crate::engine::adapted::AdapterSet;
use crate::engine::ops::rope::Rotary;

/// One of the prompts that an image is generated from, embedded.
pub(crate) struct Pass {
    /// `[text tokens, hidden]`
    pub(crate) text: Tensor,
    /// `[1, hidden]`
    pub(crate) condition: Tensor,
    /// Of the next steps, the next one first; may be empty.
    pub(crate) modulations: VecDeque<Tensor>,
    /// Of the last step that ran all blocks, with a cache.
    pub(super) remembered: Option<Remembered>,
    /// Steps in which the cache left out blocks.
    pub(super) steps_skipped: u32,
}

impl Pass {
    /// Of a prompt, before the first step.
    pub(crate) fn new(text: Tensor, condition: Tensor) -> Self {
        Self { text, condition, modulations: VecDeque::new(), remembered: None, steps_skipped: 0 }
    }

    /// Notes how its cache went through a step.
    fn note(&mut self, outcome: Option<CacheOutcome>) {
        match outcome {
            Some(CacheOutcome::Complete(remembered)) => self.remembered = Some(remembered),
            Some(CacheOutcome::Skipped) => self.steps_skipped += 1,
            None => {}
        }
    }
}

/// An image that is being generated.
pub(crate) struct Image {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) grid: TokenGrid,
    /// Packed, `[tokens, latent width]`, f32. Noise until the images that it starts from are encoded.
    pub(crate) latents: Tensor,
    /// Its images that are not encoded yet. There are none in a step.
    pub(crate) pending: Pending,
    /// What is joined to the latents in every step, `[tokens, joined channels]`, f32.
    pub(crate) joined: Option<Tensor>,
    /// Latents of its reference images, packed, `[reference tokens, latent width]`, f32.
    pub(crate) references: Option<Tensor>,
    /// Tokens of its reference images, encoded or not.
    pub(crate) reference_tokens: usize,
    /// What stays of the image that it repaints.
    pub(crate) kept: Option<Kept>,
    /// The velocity of the last step, as `latents`.
    pub(crate) velocity: Option<Tensor>,
    /// Noise level before each step, and 0 after the last.
    pub(crate) sigmas: Vec<f32>,
    /// Steps done.
    pub(crate) steps_done: usize,
    /// The state of the decoder, once it has begun.
    pub(crate) decoding: Option<Decoding>,
    /// Of the text, image and reference tokens of each pass.
    pub(crate) rotary: Rotary,
    pub(crate) prompt: Pass,
    /// True classifier-free guidance: the negative prompt and the scale.
    pub(crate) negative: Option<(Pass, f64)>,
    /// Style images that are not yet part of its prompts.
    pub(crate) styles: Option<PendingStyles>,
    /// What changes the model for it, in both passes.
    pub(crate) adapters: AdapterSet,
    /// The cache between its steps, in each pass by itself.
    pub(crate) step_cache: Option<StepCache>,
    /// Bytes of the cache, once a step has run.
    pub(super) cache_bytes: usize,
    /// Its control images that ControlNets read.
    pub(crate) controls: Controls,
}

/// What stays of an image of which a part is repainted.
pub(crate) struct Kept {
    /// 1 where it is repainted, `[tokens, latent width]`, u8.
    mask: Tensor,
    /// The image's latents and the noise of the run, as [`Image::latents`].
    picture: Tensor,
    noise: Tensor,
}

impl Kept {
    /// Latents at a noise level, with the image outside of the mask (`FluxInpaintPipeline` of diffusers).
    fn put_around(&self, latents: &Tensor, sigma: f32) -> Result<Tensor> {
        self.mask.where_cond(latents, &noised(&self.picture, &self.noise, sigma)?)
    }
}

/// Latents with as much noise as belongs to a noise level (`scale_noise` of diffusers' `FlowMatchEulerDiscreteScheduler`).
fn noised(latents: &Tensor, noise: &Tensor, sigma: f32) -> Result<Tensor> {
    (noise * f64::from(sigma))? + (latents * f64::from(1.0 - sigma))?
}

impl Image {
    /// Takes the latents of the first of its images that are not encoded, packed.
    ///
    /// # Errors
    /// When the device is out of memory; all is as before then.
    pub(crate) fn take_encoded(&mut self, latents: Tensor) -> Result<()> {
        let device = latents.device().clone();
        match self.pending.first().map(|part| &part.goal) {
            None => return Ok(()),
            Some(Goal::Start { mask }) => {
                let mask = mask.as_ref().map(|mask| latent_mask(mask, &self.grid, &device)).transpose()?;
                let first = noised(&latents, &self.latents, self.sigmas[0])?;
                let noise = std::mem::replace(&mut self.latents, first);
                self.kept = mask.map(|mask| Kept { mask, picture: latents, noise });
            }
            Some(Goal::Surroundings { mask }) => {
                self.joined = Some(Tensor::cat(&[&latents, &fill_channels(mask, &self.grid, &device)?], 1)?);
            }
            Some(Goal::Control) => self.joined = Some(latents),
            Some(Goal::Net { control }) => {
                if let Some(control) = self.controls.all.get_mut(*control) {
                    control.latents = Some(latents);
                }
            }
            Some(Goal::Reference) => {
                self.references = Some(match &self.references {
                    Some(before) => Tensor::cat(&[before, &latents], 0)?,
                    None => latents,
                });
            }
        }
        self.pending.complete_first();
        Ok(())
    }

    /// Whether its images are encoded. Only then it may take a step.
    pub(crate) fn is_encoded(&self) -> bool {
        self.styles.is_none() && self.pending.is_empty()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.steps_done + 1 >= self.sigmas.len()
    }

    pub(crate) fn passes(&self) -> impl Iterator<Item = &Pass> {
        std::iter::once(&self.prompt).chain(self.negative.as_ref().map(|(pass, _)| pass))
    }

    pub(crate) fn passes_mut(&mut self) -> impl Iterator<Item = &mut Pass> {
        std::iter::once(&mut self.prompt).chain(self.negative.as_mut().map(|(pass, _)| pass))
    }

    /// Whether the modulation of the next step is there.
    pub(crate) fn is_modulated(&self) -> bool {
        self.passes().all(|pass| !pass.modulations.is_empty())
    }

    /// Those of the next `steps` steps whose modulation is missing, pass by pass.
    pub(crate) fn missing_modulations(&self, steps: usize) -> impl Iterator<Item = Conditioned<'_>> {
        let ahead = &self.sigmas[self.steps_done..self.sigmas.len() - 1];
        let ahead = &ahead[..steps.min(ahead.len())];
        self.passes().flat_map(move |pass| {
            let missing = ahead.iter().skip(pass.modulations.len());
            missing.map(move |sigma| Conditioned {
                sigma: *sigma,
                condition: &pass.condition,
                adapters: &self.adapters,
            })
        })
    }

    /// Takes the modulations that [`Self::missing_modulations`] named.
    pub(crate) fn take_modulations(&mut self, steps: usize, from: &mut impl Iterator<Item = Tensor>) {
        let count = steps.min(self.sigmas.len() - 1 - self.steps_done);
        for pass in self.passes_mut() {
            let missing = count.saturating_sub(pass.modulations.len());
            pass.modulations.extend(from.by_ref().take(missing));
        }
    }

    /// Tokens that one step of this image adds to the batch.
    pub(crate) fn step_tokens(&self) -> usize {
        self.passes().map(|pass| self.grid.tokens() + self.reference_tokens + pass.text.dims()[0]).sum()
    }

    /// The sequences of the next step: one, or two with a negative prompt. Without what ControlNets add to both.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = Sequence<'_>> {
        self.passes().map(move |pass| Sequence {
            latents: &self.latents,
            joined: self.joined.as_ref(),
            references: self.references.as_ref(),
            text: &pass.text,
            condition: &pass.condition,
            modulation: pass.modulations.front(),
            rotary: &self.rotary,
            sigma: self.sigmas[self.steps_done],
            adapters: &self.adapters,
            cache: self.cache_in(pass),
            residuals: None,
        })
    }

    /// The cache of a pass in the next step. A step in which a change from outside is added behind blocks must have none: the
    /// remembered change would not have it.
    fn cache_in<'p>(&self, pass: &'p Pass) -> Option<CacheUse<'p>> {
        let StepCache { threshold } = self.step_cache?;
        Some(CacheUse { threshold, remembered: pass.remembered.as_ref() })
    }

    /// Bytes of its cache, from its admission until no step needs it.
    pub(crate) fn cache_bytes(&self) -> usize {
        if self.is_done() { 0 } else { self.cache_bytes }
    }

    /// Bytes of what its cache holds.
    #[cfg(test)]
    pub(crate) fn remembered_bytes(&self) -> usize {
        self.passes().filter_map(|pass| pass.remembered.as_ref()).map(Remembered::bytes).sum()
    }

    /// How often the cache left out the blocks behind the first, over all steps and passes.
    pub(crate) fn steps_skipped(&self) -> u32 {
        self.passes().map(|pass| pass.steps_skipped).sum()
    }

    /// Combines the passes' velocities, taken from the front of `velocities` in the order of [`Self::sequences`].
    pub(crate) fn combine(&self, velocities: &mut impl Iterator<Item = Tensor>) -> Result<Tensor> {
        let mut next = || velocities.next().expect("one velocity per sequence");
        let with_prompt = next();
        match &self.negative {
            None => Ok(with_prompt),
            Some((_, scale)) => {
                let without = next();
                let difference = (with_prompt - &without)?;
                without + (difference * *scale)?
            }
        }
    }

    /// The latents that the schedule would end with if the velocity of the last step stayed: `x - sigma × v`, packed. `None`
    /// before the first step.
    pub(crate) fn expected(&self) -> Result<Option<Tensor>> {
        let Some(velocity) = &self.velocity else { return Ok(None) };
        let sigma = f64::from(self.sigmas[self.steps_done]);
        self.around((&self.latents - (velocity * sigma)?)?, 0.0).map(Some)
    }

    /// The latents after an Euler step along `velocity`, both `[tokens, latent width]` f32. What is not repainted is the image that
    /// it is repainted in, with the noise of the next step.
    pub(crate) fn euler_step(&self, velocity: &Tensor) -> Result<Tensor> {
        let (before, after) = (self.sigmas[self.steps_done], self.sigmas[self.steps_done + 1]);
        self.around((&self.latents + (velocity * f64::from(after - before))?)?, after)
    }

    /// Latents at a noise level, with what stays of an image around them.
    fn around(&self, latents: Tensor, sigma: f32) -> Result<Tensor> {
        match &self.kept {
            Some(kept) => kept.put_around(&latents, sigma),
            None => Ok(latents),
        }
    }

    /// Notes the outcome of a step.
    pub(crate) fn advance(&mut self, stepped: Stepped) {
        (self.latents, self.velocity) = (stepped.latents, Some(stepped.velocity));
        self.steps_done += 1;
        let is_done = self.is_done();
        for (pass, outcome) in self.passes_mut().zip(stepped.cached) {
            pass.modulations.pop_front();
            pass.note(outcome);
            if is_done {
                // No step comes that could use it, and the decoder may need its memory.
                pass.remembered = None;
            }
        }
    }
}

/// The outcome of one step of an image.
pub(crate) struct Stepped {
    /// As [`Image::latents`].
    pub(super) latents: Tensor,
    /// As [`Image::latents`].
    pub(super) velocity: Tensor,
    /// How the cache of each pass went, in their order.
    pub(super) cached: Vec<Option<CacheOutcome>>,
}
