//! FLUX on candle, behind [`crate::domain::engine::StepEngine`]. The only home of candle; knows nothing of tokio, HTTP,
//! queue, auth or SQL.

mod device;
mod loader;
mod noise;
pub(crate) mod ops;
mod preview;
mod sampler;
mod slots;
mod text;
mod transformer;
mod vae;

#[cfg(test)]
mod parity;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::domain::device::DeviceChoice;
use crate::domain::engine::{EngineError, EngineLimits, RgbImage, Slot, StepEngine};
use crate::domain::model::ModelFiles;
use crate::domain::spec::GenerateSpec;

pub use device::{DeviceError, probe};
use loader::Checkpoint;
use loader::config::Configs;
pub use loader::{CheckpointError, ComponentReport, Inspection, Problem, inspect};
use preview::Projection;
use slots::{Pass, Picture, TokenGrid};
use text::tokens::{TokenizerError, Tokenizers};
use text::{PromptEmbedding, TextEncoders};
use transformer::Transformer;
use vae::{Decoder, Decoding};

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The checkpoint is not whole.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights could not be brought to the device.
    #[error("the weights could not be loaded: {0}")]
    Weights(#[from] candle_core::Error),
}

/// A FLUX model on one device.
pub struct FluxEngine {
    configs: Configs,
    tokenizers: Tokenizers,
    text: TextEncoders,
    transformer: Transformer,
    decoder: Decoder,
    projection: Projection,
    device: Device,
    limits: EngineLimits,
    pictures: BTreeMap<Slot, Picture>,
    next_slot: u64,
}

impl FluxEngine {
    /// Loads a checkpoint, in either published layout, onto a device. bf16 on CUDA, f32 on the CPU; the autoencoder is
    /// f32 on both.
    ///
    /// # Errors
    /// When the device cannot be had, the checkpoint is not whole, or memory does not suffice.
    pub fn load(files: &ModelFiles, device: DeviceChoice) -> Result<Self, LoadError> {
        let device = device::open(device)?;
        let checkpoint = Checkpoint::open(files)?;
        let configs = checkpoint.configs.clone();
        let dtype = device::dtype(&device);
        let decoder = Decoder::load(&configs.vae, &checkpoint.vae(DType::F32, &device))?;
        Ok(Self {
            projection: Projection::of(&decoder, configs.vae.latent_channels, &device)?,
            decoder,
            text: TextEncoders::load(&configs, &checkpoint.clip(dtype, &device), checkpoint.t5(dtype, &device))?,
            transformer: Transformer::load(&configs.transformer, &checkpoint.transformer(dtype, &device))?,
            tokenizers: checkpoint.tokenizers,
            configs,
            device,
            limits: device::initial_limits(),
            pictures: BTreeMap::new(),
            next_slot: 0,
        })
    }

    fn embed(&mut self, prompt: &str, t5_prompt: &str, length: usize) -> Result<PromptEmbedding, EngineError> {
        let clip_ids = self.tokenizers.clip(prompt).map_err(unreadable_prompt)?;
        let t5_ids = self.tokenizers.t5(t5_prompt, length).map_err(unreadable_prompt)?;
        let pooled = self.text.pooled(&clip_ids, self.tokenizers.clip_end()).map_err(device_error)?;
        let sequence = self.text.sequence(&t5_ids).map_err(device_error)?;
        Ok(PromptEmbedding { pooled, sequence })
    }

    fn pass(&self, embedding: &PromptEmbedding, guidance: f64) -> candle_core::Result<Pass> {
        Ok(Pass {
            text: self.transformer.embed_text(&embedding.sequence)?,
            condition: self.transformer.embed_condition(&embedding.pooled, guidance)?,
        })
    }

    fn picture(&mut self, spec: &GenerateSpec) -> Result<Picture, EngineError> {
        let length = spec.sequence_length();
        let prompt = self.embed(spec.prompt(), spec.t5_prompt(), length)?;
        let prompt = self.pass(&prompt, spec.guidance()).map_err(device_error)?;
        let negative = match spec.negative() {
            None => None,
            Some(negative) => {
                let embedding = self.embed(&negative.prompt, &negative.prompt, length)?;
                Some((self.pass(&embedding, spec.guidance()).map_err(device_error)?, negative.scale))
            }
        };
        let grid = TokenGrid::of(spec, self.configs.vae.latent_channels);
        let skipped = spec.image_index() as usize * grid.elements();
        let noise = noise::standard_normal(spec.seed(), skipped, grid.elements());
        Ok(Picture {
            width: spec.width(),
            height: spec.height(),
            grid,
            latents: grid.pack(noise, &self.device).map_err(device_error)?,
            velocity: None,
            sigmas: sampler::sigmas(&self.configs.scheduler, spec.image_tokens(), spec.steps() as usize),
            steps_done: 0,
            decoding: None,
            rotary: self.transformer.rotary(grid.rows, grid.columns).map_err(device_error)?,
            prompt,
            negative,
        })
    }

    /// Takes a picture out that has done all its steps: what goes wrong from here on lets go of it.
    fn take_done(&mut self, slot: Slot) -> Result<Picture, EngineError> {
        let picture = self.pictures.remove(&slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
        if picture.is_done() {
            Ok(picture)
        } else {
            Err(EngineError::Request("the picture has steps left to do".to_owned()))
        }
    }

    /// What the decoder has done of a picture, if only the beginning.
    fn decoding(&self, picture: &mut Picture) -> Result<Decoding, EngineError> {
        match picture.decoding.take() {
            Some(decoding) => Ok(decoding),
            None => picture
                .grid
                .unpack(&picture.latents)
                .and_then(|latents| self.decoder.begin(&latents))
                .map_err(device_error),
        }
    }

    /// The latents of `slots` after one more step and where it was headed, in their order.
    fn stepped(&self, slots: &[Slot]) -> Result<Vec<(Tensor, Tensor)>, EngineError> {
        let mut pictures = Vec::with_capacity(slots.len());
        for slot in slots {
            let picture = self.pictures.get(slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
            if picture.is_done() {
                return Err(EngineError::Fatal(format!("{slot:?} has done all its steps")));
            }
            pictures.push(picture);
        }
        let sequences: Vec<_> = pictures.iter().flat_map(|picture| picture.sequences()).collect();
        let run = || -> candle_core::Result<Vec<(Tensor, Tensor)>> {
            let mut velocities = self.transformer.velocities(&sequences)?.into_iter();
            let stepped = pictures.iter().map(|picture| {
                let velocity = picture.combine(&mut velocities)?;
                Ok((picture.euler_step(&velocity)?, velocity))
            });
            stepped.collect()
        };
        run().map_err(device_error)
    }
}

impl StepEngine for FluxEngine {
    fn limits(&self) -> EngineLimits {
        self.limits
    }

    fn attention_balance_tokens(&self) -> usize {
        self.transformer.attention_balance_tokens()
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        let picture = self.picture(spec)?;
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        self.pictures.insert(slot, picture);
        Ok(slot)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let stepped = self.stepped(slots).inspect_err(|error| {
            if matches!(error, EngineError::OutOfMemory(_)) {
                let tokens = slots.iter().filter_map(|slot| self.pictures.get(slot)).map(Picture::step_tokens).sum();
                self.limits = device::limits_after_out_of_memory(self.limits, tokens);
            }
        })?;
        for (slot, (latents, velocity)) in slots.iter().zip(stepped) {
            if let Some(picture) = self.pictures.get_mut(slot) {
                (picture.latents, picture.velocity) = (latents, Some(velocity));
                picture.steps_done += 1;
            }
        }
        Ok(())
    }

    fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let mut picture = self.take_done(slot)?;
        let mut decoding = self.decoding(&mut picture)?;
        let is_left = self.decoder.advance(&mut decoding).map_err(device_error)?;
        picture.decoding = Some(decoding);
        self.pictures.insert(slot, picture);
        Ok(!is_left)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let mut picture = self.take_done(slot)?;
        let decoding = self.decoding(&mut picture)?;
        let pixels = self.decoder.complete(decoding).map_err(device_error)?;
        let bytes = vae::to_rgb_bytes(&pixels).map_err(device_error)?;
        let bytes = bytes.ok_or(EngineError::NotFinite)?;
        let image = RgbImage::new(picture.width, picture.height, bytes)
            .ok_or_else(|| EngineError::Fatal("the decoder produced a picture of another size".to_owned()))?;
        // The picture is done: what goes wrong here must not keep it back.
        let learned =
            picture.grid.unpack(&picture.latents).and_then(|latents| self.projection.learn(&latents, &pixels));
        if let Err(error) = learned {
            tracing::debug!(%error, "nothing was learned for previews");
        }
        Ok(image)
    }

    fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        let Some(picture) = self.pictures.get(&slot) else { return Ok(None) };
        let run = || -> candle_core::Result<Option<RgbImage>> {
            let Some(latents) = picture.expected()? else { return Ok(None) };
            self.projection.picture(&picture.grid.unpack(&latents)?)
        };
        run().map_err(device_error)
    }

    fn release(&mut self, slot: Slot) {
        self.pictures.remove(&slot);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn unreadable_prompt(error: TokenizerError) -> EngineError {
    tracing::debug!(%error, "a tokenizer refused a prompt");
    EngineError::Request("the prompt cannot be cut into tokens".to_owned())
}

/// candle says "out of memory" only in words.
#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn device_error(error: candle_core::Error) -> EngineError {
    let text = error.to_string();
    if text.contains("OUT_OF_MEMORY") || text.contains("out of memory") {
        EngineError::OutOfMemory(text)
    } else {
        EngineError::Fatal(text)
    }
}
