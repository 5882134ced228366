//! An image between two steps: its latents, its position in the schedule, and what conditions it.

use std::collections::VecDeque;

use candle_core::{Device, Result, Tensor};

use super::text::styles::PendingStyles;
use super::transformer::{Conditioned, Sequence};
use super::vae::Decoding;
use crate::domain::spec::{GenerateSpec, PIXELS_PER_TOKEN_SIDE};
use crate::engine::adapted::AdapterSet;
use crate::engine::ops::rope::Rotary;

/// Latent pixels along one side of a token.
const PATCH: usize = 2;

/// The size of an image in tokens, and its latent channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenGrid {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) channels: usize,
}

impl TokenGrid {
    pub(crate) fn of(spec: &GenerateSpec, channels: usize) -> Self {
        let tokens = |pixels: u32| (pixels / PIXELS_PER_TOKEN_SIDE) as usize;
        Self { rows: tokens(spec.height()), columns: tokens(spec.width()), channels }
    }

    /// Numbers in the latents.
    pub(crate) fn elements(&self) -> usize {
        self.rows * self.columns * self.channels * PATCH * PATCH
    }

    /// Latents `[1, channels, height / 8, width / 8]` from a flat list.
    pub(crate) fn latents(&self, values: Vec<f32>, device: &Device) -> Result<Tensor> {
        Tensor::from_vec(values, (1, self.channels, self.rows * PATCH, self.columns * PATCH), device)
    }

    /// Latents `[1, channels, height / 8, width / 8]` -> packed tokens `[tokens, channels × 2 × 2]`: channel first, then
    /// row, then column inside a token.
    pub(crate) fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        latents
            .reshape((self.channels, self.rows, PATCH, self.columns, PATCH))?
            .permute((1, 3, 0, 2, 4))?
            .reshape((self.rows * self.columns, self.channels * PATCH * PATCH))
    }

    /// The inverse of [`Self::pack`].
    pub(crate) fn unpack(&self, tokens: &Tensor) -> Result<Tensor> {
        tokens.reshape((self.rows, self.columns, self.channels, PATCH, PATCH))?.permute((2, 0, 3, 1, 4))?.reshape((
            1,
            self.channels,
            self.rows * PATCH,
            self.columns * PATCH,
        ))
    }
}

/// One of the prompts that an image is generated from, embedded.
pub(crate) struct Pass {
    /// `[text tokens, hidden]`
    pub(crate) text: Tensor,
    /// `[1, hidden]`
    pub(crate) condition: Tensor,
    /// Of the next steps, the next one first; may be empty.
    pub(crate) modulations: VecDeque<Tensor>,
}

/// An image that is being generated.
pub(crate) struct Image {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) grid: TokenGrid,
    /// Packed, `[tokens, in_channels]`, f32.
    pub(crate) latents: Tensor,
    /// The velocity of the last step, as `latents`.
    pub(crate) velocity: Option<Tensor>,
    /// Noise level before each step, and 0 after the last.
    pub(crate) sigmas: Vec<f32>,
    /// Steps done.
    pub(crate) steps_done: usize,
    /// The state of the decoder, once it has begun.
    pub(crate) decoding: Option<Decoding>,
    /// Of the text and image tokens of each pass.
    pub(crate) rotary: Rotary,
    pub(crate) prompt: Pass,
    /// True classifier-free guidance: the negative prompt and the scale.
    pub(crate) negative: Option<(Pass, f64)>,
    /// Style images that are not yet part of its prompts.
    pub(crate) styles: Option<PendingStyles>,
    /// What changes the model for it, in both passes.
    pub(crate) adapters: AdapterSet,
}

impl Image {
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
        self.passes().map(|pass| self.grid.rows * self.grid.columns + pass.text.dims()[0]).sum()
    }

    /// The sequences of the next step: one, or two with a negative prompt.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = Sequence<'_>> {
        self.passes().map(|pass| Sequence {
            latents: &self.latents,
            text: &pass.text,
            condition: &pass.condition,
            modulation: pass.modulations.front(),
            rotary: &self.rotary,
            sigma: self.sigmas[self.steps_done],
            adapters: &self.adapters,
        })
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
        let sigma = f64::from(self.sigmas[self.steps_done]);
        self.velocity.as_ref().map(|velocity| &self.latents - (velocity * sigma)?).transpose()
    }

    /// The latents after an Euler step along `velocity`, both `[tokens, in_channels]` f32.
    pub(crate) fn euler_step(&self, velocity: &Tensor) -> Result<Tensor> {
        let change = self.sigmas[self.steps_done + 1] - self.sigmas[self.steps_done];
        &self.latents + (velocity * f64::from(change))?
    }

    /// Notes the outcome of a step.
    pub(crate) fn advance(&mut self, stepped: Stepped) {
        (self.latents, self.velocity) = (stepped.latents, Some(stepped.velocity));
        self.steps_done += 1;
        for pass in self.passes_mut() {
            pass.modulations.pop_front();
        }
    }
}

/// The outcome of one step of an image.
pub(crate) struct Stepped {
    /// As [`Image::latents`].
    pub(super) latents: Tensor,
    /// As [`Image::latents`].
    pub(super) velocity: Tensor,
}
