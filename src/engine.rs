//! FLUX on candle, behind [`crate::domain::engine::StepEngine`]. The only home of candle; knows nothing of tokio, HTTP,
//! queue, auth or SQL.

mod device;
mod loader;
mod noise;
pub(crate) mod ops;
mod plan;
mod precision;
mod preview;
mod reading;
mod room;
mod sampler;
mod self_test;
mod slots;
mod stages;
mod text;
mod trace;
mod transformer;
mod vae;

#[cfg(test)]
mod parity;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};

use crate::domain::device::{EngineSettings, Offload};
use crate::domain::engine::{EngineError, EngineLimits, LoadObserver, Slot, StepEngine};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelFiles;
use crate::domain::spec::GenerateSpec;

pub use device::{DeviceError, free_bytes, probe};
use loader::config::Configs;
use loader::{Checkpoint, LoadOptions};
pub use loader::{CheckpointError, ComponentReport, Inspection, KeptAs, Problem, inspect};
pub use plan::TooLarge;
pub use precision::{PrecisionError, check_precision};
use preview::Projection;
pub use reading::{LoadTimes, Reading, read_weights};
pub use room::memory_plan;
pub use self_test::{OpReport, self_test};
use slots::{Image, Pass, TokenGrid};
pub use stages::{Stages, WriteError};
use text::cache::{PromptCache, PromptKey};
use text::tokens::{TokenizerError, Tokenizers};
use text::{PromptEmbedding, TextEncoders};
pub use trace::Trace;
use transformer::Transformer;
use vae::{Decoder, Decoding, Encoder};

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The checkpoint is not whole.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device's memory does not suffice.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The device or the model does not have the precision.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The weights could not be brought to the device.
    #[error("the weights could not be loaded: {0}")]
    Weights(#[from] candle_core::Error),
}

/// A FLUX model on one device.
pub struct FluxEngine {
    configs: Configs,
    tokenizers: Tokenizers,
    text: TextEncoders,
    prompts: PromptCache,
    transformer: Transformer,
    encoder: Encoder,
    decoder: Decoder,
    projection: Projection,
    device: Device,
    limits: EngineLimits,
    /// Most pixels that can be decoded in the device's memory.
    pixels_max: usize,
    /// Whether each image is computed by itself also within a step.
    is_apart: bool,
    images: BTreeMap<Slot, Image>,
    next_slot: u64,
    load_times: LoadTimes,
}

impl FluxEngine {
    /// Loads a checkpoint, in either published layout, onto a device. bf16 on CUDA, f32 on the CPU; latents, and what
    /// encodes images, are f32 on both.
    ///
    /// On the thread that loads it the engine must stay: CUDA's stream is that thread's.
    ///
    /// # Errors
    /// When the device cannot be had, the checkpoint is not whole, or memory does not suffice.
    pub fn load(files: &ModelFiles, settings: impl Into<EngineSettings>) -> Result<Self, LoadError> {
        Self::load_watched(files, settings, Arc::new(()))
    }

    /// [`Self::load`], and `observer` hears how far it is.
    ///
    /// # Errors
    /// As there.
    pub fn load_watched(
        files: &ModelFiles,
        settings: impl Into<EngineSettings>,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Self, LoadError> {
        let (started, settings) = (Instant::now(), settings.into());
        // To open a device can take as long as to open the files, and most of either is waiting.
        let (device, device_seconds, checkpoint) = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| Checkpoint::open(files));
            let device = device::open(settings.device);
            let device_seconds = started.elapsed().as_secs_f64();
            (device, device_seconds, checkpoint.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (device, checkpoint) = (device?, checkpoint?);
        let check_seconds = started.elapsed().as_secs_f64() - device_seconds;
        let configs = checkpoint.configs.clone();
        precision::check_widths(&configs.transformer, &device, settings.precision)?;
        precision::check_device(&device, settings.precision)?;
        let (limits, pixels_max) = room::limits_of(&checkpoint, &device, &settings)?;
        if settings.precision.is_lossy() {
            let precision = settings.precision;
            tracing::warn!(%precision, "the engine draws in a lossy precision: not quite the images of the model");
        }
        ops::attention::KERNELS.choose(&device, settings.kernels);
        ops::convolution::KERNELS.choose(&device, settings.kernels);
        let is_text_streamed = settings.offload == Offload::Text;
        let keeping = LoadOptions { dtype: device::dtype(&device), is_text_streamed };
        let loading = checkpoint.load_onto(&device, keeping, observer)?;
        // In the order of the plan in `loader/loading.rs`, by which is read ahead.
        let decoder = Decoder::load(&configs.vae, &loading.decoder())?;
        let encoder = Encoder::load(&configs.vae, &loading.encoder())?;
        let text = TextEncoders::load(&configs, &loading.clip(), loading.t5(), is_text_streamed)?;
        let transformer = Transformer::load(&configs.transformer, &loading.transformer(), settings.precision)?;
        let (weights_bytes, weights_seconds) = loading.finish()?;
        let learning = Instant::now();
        let projection = Projection::of(&decoder, configs.vae.latent_channels, &device)?;
        let preview_seconds = learning.elapsed().as_secs_f64();
        Ok(Self {
            encoder,
            projection,
            decoder,
            text,
            prompts: PromptCache::default(),
            transformer,
            tokenizers: checkpoint.tokenizers,
            configs,
            // The CPU's own operations give each row the same bits in any company.
            is_apart: settings.is_deterministic && !device.is_cpu(),
            device,
            limits,
            pixels_max,
            images: BTreeMap::new(),
            next_slot: 0,
            load_times: LoadTimes { device_seconds, check_seconds, weights_seconds, weights_bytes, preview_seconds },
        })
    }

    /// What the parts of loading took.
    #[must_use]
    pub fn load_times(&self) -> LoadTimes {
        self.load_times
    }

    fn embed(&mut self, prompt: &str, t5_prompt: &str, length: usize) -> Result<PromptEmbedding, EngineError> {
        let key = PromptKey { prompt: prompt.to_owned(), t5_prompt: t5_prompt.to_owned(), length };
        if let Some(embedding) = self.prompts.get(&key) {
            return Ok(embedding);
        }
        let clip_ids = self.tokenizers.clip(prompt).map_err(unreadable_prompt)?;
        let t5_ids = self.tokenizers.t5(t5_prompt, length).map_err(unreadable_prompt)?;
        let pooled = self.text.pooled(&clip_ids, self.tokenizers.clip_end()).map_err(device_error)?;
        let sequence = self.text.sequence(&t5_ids).map_err(device_error)?;
        let embedding = PromptEmbedding { pooled, sequence };
        self.prompts.put(key, embedding.clone());
        Ok(embedding)
    }

    fn pass(&self, embedding: &PromptEmbedding, guidance: f64) -> candle_core::Result<Pass> {
        Ok(Pass {
            text: self.transformer.embed_text(&embedding.sequence)?,
            condition: self.transformer.embed_condition(&embedding.pooled, guidance)?,
        })
    }

    fn image(&mut self, spec: &GenerateSpec) -> Result<Image, EngineError> {
        let pixels = spec.width() as usize * spec.height() as usize;
        if pixels > self.pixels_max {
            return Err(EngineError::Request(format!(
                "{}x{} pixels do not fit in the device's memory: {} pixels do",
                spec.width(),
                spec.height(),
                self.pixels_max
            )));
        }
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
        let mut sigmas = sampler::sigmas(&self.configs.scheduler, spec.image_tokens(), spec.steps_scheduled() as usize);
        // An image that starts from another one begins further down the schedule.
        sigmas.drain(..(spec.steps_scheduled() - spec.steps()) as usize);
        Ok(Image {
            width: spec.width(),
            height: spec.height(),
            grid,
            latents: self.first_latents(spec, grid, sigmas[0]).map_err(device_error)?,
            velocity: None,
            sigmas,
            steps_done: 0,
            decoding: None,
            rotary: self.transformer.rotary(length, grid.rows, grid.columns).map_err(device_error)?,
            prompt,
            negative,
        })
    }

    /// The latents that the first step is done on, packed: noise, or the input image with as much noise as
    /// belongs to the noise level `sigma`. Its sample is drawn from the seed's generator first, and the noise second
    /// (`FluxImg2ImgPipeline.prepare_latents` of diffusers).
    fn first_latents(&self, spec: &GenerateSpec, grid: TokenGrid, sigma: f32) -> candle_core::Result<Tensor> {
        let elements = grid.elements();
        let draw = |skipped| grid.latents(noise::standard_normal(spec.seed(), skipped, elements), &self.device);
        let before_this_one = spec.image_index() as usize * elements;
        let Some(start) = spec.input_image() else { return grid.pack(&draw(before_this_one)?) };
        let moments = self.encoder.encode(&vae::pixels_of(&start.image, &self.device)?)?;
        // Images of one batch start from the same sample.
        let sample = self.encoder.sample(&moments, &draw(0)?)?;
        let noise = draw(elements + before_this_one)?;
        grid.pack(&((noise * f64::from(sigma))? + (sample * f64::from(1.0 - sigma))?)?)
    }

    /// Takes an image out that has done all its steps: what goes wrong from here on lets go of it.
    fn take_done(&mut self, slot: Slot) -> Result<Image, EngineError> {
        let image = self.images.remove(&slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
        if image.is_done() { Ok(image) } else { Err(EngineError::Request("the image has steps left to do".to_owned())) }
    }

    /// What the decoder has done of an image, if only the beginning.
    fn decoding(&self, image: &mut Image) -> Result<Decoding, EngineError> {
        match image.decoding.take() {
            Some(decoding) => Ok(decoding),
            None => {
                image.grid.unpack(&image.latents).and_then(|latents| self.decoder.begin(&latents)).map_err(device_error)
            }
        }
    }

    /// The latents of `slots` after one more step and where it was headed, in their order.
    fn stepped(&self, slots: &[Slot]) -> Result<Vec<(Tensor, Tensor)>, EngineError> {
        let mut images = Vec::with_capacity(slots.len());
        for slot in slots {
            let image = self.images.get(slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
            if image.is_done() {
                return Err(EngineError::Fatal(format!("{slot:?} has done all its steps")));
            }
            images.push(image);
        }
        // A product's bits depend on how many rows it has, where the library picks another algorithm for another number.
        let together = if self.is_apart { 1 } else { images.len().max(1) };
        let run = || -> candle_core::Result<Vec<(Tensor, Tensor)>> {
            let mut stepped = Vec::with_capacity(images.len());
            for images in images.chunks(together) {
                let sequences: Vec<_> = images.iter().flat_map(|image| image.sequences()).collect();
                let mut velocities = self.transformer.velocities(&sequences)?.into_iter();
                for image in images {
                    let velocity = image.combine(&mut velocities)?;
                    stepped.push((image.euler_step(&velocity)?, velocity));
                }
            }
            // What has only been asked of the device has not been done: time is taken after this, and it may still fail.
            self.device.synchronize()?;
            Ok(stepped)
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
        let image = self.image(spec)?;
        self.wait()?;
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        self.images.insert(slot, image);
        Ok(slot)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let stepped = self.stepped(slots).inspect_err(|error| {
            if matches!(error, EngineError::OutOfMemory(_)) {
                let tokens = slots.iter().filter_map(|slot| self.images.get(slot)).map(Image::step_tokens).sum();
                self.limits = device::limits_after_out_of_memory(self.limits, tokens);
            }
        })?;
        for (slot, (latents, velocity)) in slots.iter().zip(stepped) {
            if let Some(image) = self.images.get_mut(slot) {
                (image.latents, image.velocity) = (latents, Some(velocity));
                image.steps_done += 1;
            }
        }
        Ok(())
    }

    fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let mut image = self.take_done(slot)?;
        let mut decoding = self.decoding(&mut image)?;
        let is_left = self.decoder.advance(&mut decoding).map_err(device_error)?;
        self.wait()?;
        image.decoding = Some(decoding);
        self.images.insert(slot, image);
        Ok(!is_left)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let mut image = self.take_done(slot)?;
        let decoding = self.decoding(&mut image)?;
        let pixels = self.decoder.complete(decoding).map_err(device_error)?;
        let bytes = vae::to_rgb_bytes(&pixels).map_err(device_error)?;
        let bytes = bytes.ok_or(EngineError::NotFinite)?;
        let result = RgbImage::new(image.width, image.height, bytes)
            .ok_or_else(|| EngineError::Fatal("the decoder produced an image of another size".to_owned()))?;
        // The image is done: what goes wrong here must not keep it back.
        let learned = image.grid.unpack(&image.latents).and_then(|latents| self.projection.learn(&latents, &pixels));
        if let Err(error) = learned {
            tracing::debug!(%error, "nothing was learned for previews");
        }
        Ok(result)
    }

    fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        let Some(image) = self.images.get(&slot) else { return Ok(None) };
        let run = || -> candle_core::Result<Option<RgbImage>> {
            let Some(latents) = image.expected()? else { return Ok(None) };
            self.projection.image(&image.grid.unpack(&latents)?)
        };
        run().map_err(device_error)
    }

    fn release(&mut self, slot: Slot) {
        self.images.remove(&slot);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn unreadable_prompt(error: TokenizerError) -> EngineError {
    tracing::debug!(%error, "a tokenizer refused a prompt");
    EngineError::Request("the prompt cannot be cut into tokens".to_owned())
}

/// candle says "out of memory" only in words: the driver's, or those of a library that wanted room to work in.
#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn device_error(error: candle_core::Error) -> EngineError {
    let text = error.to_string();
    if ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"].into_iter().any(|words| text.contains(words)) {
        EngineError::OutOfMemory(text)
    } else {
        EngineError::Fatal(text)
    }
}
