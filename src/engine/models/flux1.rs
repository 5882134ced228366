//! FLUX.1 as a pipeline: admits a request, runs steps, decodes. The engine holds the images between the calls.
//!
//! Knows neither slots nor files: weights come through [`Weights`], by the names of the single files.

mod conditioning;
pub(crate) mod config;
mod controlling;
mod controls;
mod drafting;
mod encoding;
mod grid;
mod image;
#[cfg(test)]
mod measured;
mod positions;
mod preview;
pub(crate) mod schedule;
mod styles;
pub(crate) mod text;
pub(in crate::engine) mod transformer;
mod vae;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

use crate::domain::conditioning::Conditioning;
use crate::domain::engine::EngineError;
use crate::domain::image::RgbImage;
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateSpec;
use crate::engine::adapted::AdapterSet;
use crate::engine::checkpoint::{ControlNetWeights, StreamedBlocks, Tensors};
use crate::engine::device::device_error;
use crate::engine::noise;
use crate::engine::ops::recording::Recording;
use crate::engine::vision::Vision;

pub(crate) use self::grid::TokenGrid;
use self::image::Pass;
pub(crate) use self::image::{Image, Stepped};
use conditioning::{Draws, Pending};
pub(crate) use conditioning::{refusal, refusal_by_adapters};
use config::Configs;
pub(crate) use drafting::Drafting;
use preview::Projection;
use text::cache::{PromptCache, PromptKey};
use text::styles::PendingStyles;
use text::tokens::{TokenizerError, Tokenizers};
use text::{PromptEmbedding, TextEncoders};
use transformer::replay::{OnDevice, Replay};
use transformer::{ControlNet, Prediction};
pub(crate) use transformer::{Sequence, Transformer};
use vae::Decoding;
pub(crate) use vae::{Decoder, Encoder, STRIP_ROWS, UPSAMPLINGS_IN_STRIPS};
#[cfg(test)]
pub(crate) use vae::{pixels_of, to_rgb_bytes};

/// Steps whose modulations are computed at once. A step of FLUX.1-dev has half a megabyte of them.
const STEPS_AHEAD: usize = 8;

/// The outcome of what may fail for one request alone, or for all.
type Outcome<T> = std::result::Result<T, EngineError>;

/// The weights of each component, in the order in which [`Flux1::load`] asks for them.
pub(crate) struct Weights {
    pub(crate) decoder: VarBuilder<'static>,
    pub(crate) encoder: VarBuilder<'static>,
    pub(crate) clip: VarBuilder<'static>,
    pub(crate) t5: Tensors,
    pub(crate) transformer: Tensors,
    /// Beside the checkpoint.
    pub(crate) controlnets: Vec<ControlNetWeights>,
}

/// How [`Flux1::load`] keeps the weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Residency {
    /// Of the linear layers inside the transformer's blocks and, if it quantizes nothing, of T5's and of ControlNets'.
    pub(crate) precision: Precision,
    /// Whether T5's blocks are on the device only while a prompt is encoded.
    pub(crate) is_text_streamed: bool,
    /// Which of the transformer's blocks are read for each step, if any.
    pub(crate) blocks: Option<StreamedBlocks>,
    /// Maximum pixels of an image that is not decoded in strips.
    pub(crate) whole_pixels_max: usize,
}

/// A FLUX.1 model on one device.
pub(crate) struct Flux1 {
    pub(crate) configs: Configs,
    pub(crate) tokenizers: Arc<Tokenizers>,
    text: TextEncoders,
    prompts: PromptCache,
    pub(crate) transformer: Transformer,
    pub(crate) controlnets: Vec<ControlNet>,
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
    projection: Projection,
    /// What looks at images of requests.
    pub(crate) vision: Vision,
    /// Of steps, where they are recorded.
    replay: Option<Replay<Recording>>,
    device: Device,
}

impl Flux1 {
    /// Loads all components, in the order by which the checkpoint is read ahead (`checkpoint/loading.rs`).
    ///
    /// # Errors
    /// When weights cannot be read, or the device is out of memory.
    pub(crate) fn load(
        configs: Configs,
        tokenizers: Arc<Tokenizers>,
        weights: Weights,
        residency: Residency,
    ) -> Result<Self> {
        let device = weights.transformer.device().clone();
        let decoder = Decoder::load(&configs.vae, &weights.decoder)?.with_whole_pixels_max(residency.whole_pixels_max);
        let encoder = Encoder::load(&configs.vae, &weights.encoder)?;
        let Residency { precision, blocks, is_text_streamed, .. } = residency;
        let text = TextEncoders::load(&configs, weights.clip, weights.t5, precision, is_text_streamed)?;
        let transformer = Transformer::load(&configs.transformer, &weights.transformer, precision, blocks)?;
        let controlnets =
            weights.controlnets.iter().map(|net| ControlNet::load(net, precision)).collect::<Result<_>>()?;
        Ok(Self {
            projection: Projection::new(configs.vae.latent_channels),
            vision: Vision::default(),
            replay: None,
            prompts: PromptCache::default(),
            configs,
            tokenizers,
            text,
            transformer,
            controlnets,
            encoder,
            decoder,
            device,
        })
    }

    /// Lets steps that are alike be recorded as graphs, on a device that can.
    pub(crate) fn record_steps(&mut self) {
        if self.device.is_cuda() {
            self.replay = Some(Replay::default());
        } else {
            tracing::warn!("`--graphs` is for CUDA devices alone: steps are computed operation by operation");
        }
    }

    /// Fits a first map for previews, by the decoder's first run.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn fit_previews(&mut self) -> Result<()> {
        self.projection = Projection::of(&self.decoder, self.configs.vae.latent_channels, &self.device)?;
        Ok(())
    }

    /// The embeddings of a prompt by the encoders as adapters change them, from the cache if they are there. T5 reads `t5_prompt`,
    /// over `length` tokens.
    ///
    /// # Errors
    /// When a tokenizer rejects the prompt, or the device fails.
    pub(crate) fn embed(
        &mut self,
        prompt: &str,
        t5_prompt: &str,
        length: usize,
        adapters: &AdapterSet,
    ) -> Outcome<PromptEmbedding> {
        let (prompt_text, t5_text) = (prompt.to_owned(), t5_prompt.to_owned());
        let key = PromptKey { prompt: prompt_text, t5_prompt: t5_text, length, adapters: adapters.of_text() };
        if let Some(embedding) = self.prompts.get(&key) {
            return Ok(embedding);
        }
        let clip_ids = self.tokenizers.clip(prompt).map_err(unreadable_prompt)?;
        let t5_ids = self.tokenizers.t5(t5_prompt, length).map_err(unreadable_prompt)?;
        let pooled = self.text.pooled(&clip_ids, self.tokenizers.clip_end(), adapters).map_err(device_error)?;
        let sequence = self.text.sequence(&t5_ids, adapters).map_err(device_error)?;
        let embedding = PromptEmbedding { pooled, sequence };
        self.prompts.put(key, embedding.clone());
        Ok(embedding)
    }

    /// One of an image's prompts as the transformer takes it.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn pass(&self, embedding: &PromptEmbedding, guidance: f64, adapters: &AdapterSet) -> Result<Pass> {
        let text = self.transformer.embed_text(&embedding.sequence, adapters)?;
        Ok(Pass::new(text, self.transformer.embed_condition(&embedding.pooled, guidance, adapters)?))
    }

    /// What the checkpoint reads beside latents and prompts.
    pub(crate) fn reads(&self) -> Conditioning {
        self.configs.transformer.conditioning().unwrap_or_default()
    }

    /// Encodes the prompts, and samples the noise. Images are left to [`Self::encode_part`].
    ///
    /// # Errors
    /// When a tokenizer rejects a prompt, a control image cannot be used, or the device fails.
    pub(crate) fn admit(&mut self, spec: &GenerateSpec, adapters: AdapterSet) -> Outcome<Image> {
        self.check_vision(spec)?;
        let grid = TokenGrid::of(spec, self.configs.vae.latent_channels);
        let mut embeddings = vec![self.embed_for(spec, (spec.prompt(), spec.t5_prompt()), &adapters)?];
        let controls = self.controls(spec, &embeddings[0], grid)?;
        let prompt = self.pass(&embeddings[0], spec.guidance(), &adapters).map_err(device_error)?;
        let negative = match spec.negative() {
            None => None,
            Some(negative) => {
                let embedding =
                    self.embed_for(spec, (negative.prompt.as_str(), negative.prompt.as_str()), &adapters)?;
                let pass = self.pass(&embedding, spec.guidance(), &adapters).map_err(device_error)?;
                embeddings.push(embedding);
                Some((pass, negative.scale))
            }
        };
        let text_tokens = spec.sequence_length() + spec.style_tokens();
        let steps_scheduled = spec.steps_scheduled() as usize;
        let mut sigmas = schedule::sigmas(&self.configs.scheduler, spec.image_tokens(), steps_scheduled);
        // With an input image the schedule begins further down.
        sigmas.drain(..(spec.steps_scheduled() - spec.steps()) as usize);
        let draws = Draws::of(spec, grid.elements());
        let references = spec.references().iter();
        let references: Vec<TokenGrid> =
            references.map(|image| TokenGrid::of_sides(image.width(), image.height(), grid.channels)).collect();
        let sides: Vec<[usize; 2]> = references.iter().map(TokenGrid::sides).collect();
        Ok(Image {
            width: spec.width(),
            height: spec.height(),
            grid,
            latents: self.noise(&grid, spec.seed(), draws.noise()).map_err(device_error)?,
            pending: Pending::of(spec, (self.reads(), &controls), &draws, sigmas[0]),
            joined: None,
            references: None,
            reference_tokens: references.iter().map(TokenGrid::tokens).sum(),
            kept: None,
            velocity: None,
            sigmas,
            steps_done: 0,
            decoding: None,
            rotary: self.transformer.rotary(text_tokens, grid.sides(), &sides).map_err(device_error)?,
            prompt,
            negative,
            styles: PendingStyles::of(spec, embeddings),
            adapters,
            step_cache: spec.step_cache(),
            cache_bytes: self.cache_bytes(spec),
            controls,
        })
    }

    /// Bytes that the cache of an image keeps between two of its steps.
    pub(crate) fn cache_bytes(&self, spec: &GenerateSpec) -> usize {
        let of_a_pass = self.transformer.cache_bytes(spec.image_tokens() + spec.reference_tokens());
        spec.step_cache().map_or(0, |_| spec.passes() * of_a_pass)
    }

    /// Noise of a seed, packed, behind so many numbers.
    fn noise(&self, grid: &TokenGrid, seed: u64, skipped: usize) -> Result<Tensor> {
        grid.pack(&grid.latents(noise::standard_normal(seed, skipped, grid.elements()), &self.device)?)
    }

    /// Computes the modulations of the next steps of `images` if one of them has none: with as many rows as steps, the layer
    /// takes hardly longer than for one. They are missing in all images of a batch at the same time, or nearly.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn modulate_ahead(&self, images: &mut [&mut Image]) -> Result<()> {
        if images.iter().all(|image| image.is_modulated()) {
            return Ok(());
        }
        let missing: Vec<_> = images.iter().flat_map(|image| image.missing_modulations(STEPS_AHEAD)).collect();
        let mut modulations = self.transformer.modulations(&missing)?.into_iter();
        for image in images {
            image.take_modulations(STEPS_AHEAD, &mut modulations);
        }
        Ok(())
    }

    /// Runs one step of all `images` as one batch; the results are in their order.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn step(&mut self, images: &[&Image]) -> Result<Vec<Stepped>> {
        let residuals = self.residuals(images)?;
        let sequences: Vec<Sequence> = images
            .iter()
            .zip(&residuals)
            .flat_map(|(image, residuals)| {
                image.sequences().map(move |sequence| sequence.with_residuals(residuals.as_ref()))
            })
            .collect();
        // Which blocks run with a cache depends on numbers of the device: such a step is neither recorded nor repeated.
        let has_cache = sequences.iter().any(|sequence| sequence.cache.is_some());
        let predictions = match &mut self.replay {
            Some(replay) if !has_cache => {
                let velocities = replay.velocities(&OnDevice(&self.device), &self.transformer, &sequences)?;
                velocities.into_iter().map(Prediction::uncached).collect()
            }
            _ => self.transformer.predictions(&sequences)?,
        };
        let (velocities, cached): (Vec<_>, Vec<_>) =
            predictions.into_iter().map(|prediction| (prediction.velocity, prediction.cached)).unzip();
        let (mut velocities, mut cached) = (velocities.into_iter(), cached.into_iter());
        let stepped = images.iter().map(|image| {
            let velocity = image.combine(&mut velocities)?;
            let cached = cached.by_ref().take(image.passes().count()).collect();
            Ok(Stepped { latents: image.euler_step(&velocity)?, velocity, cached })
        });
        stepped.collect()
    }

    /// The decoder's state for an image, from the beginning if it has none.
    fn decoding(&self, image: &mut Image) -> Outcome<Decoding> {
        match image.decoding.take() {
            Some(decoding) => Ok(decoding),
            None => {
                image.grid.unpack(&image.latents).and_then(|latents| self.decoder.begin(&latents)).map_err(device_error)
            }
        }
    }

    /// Runs the decoder's next part. `false`: there is none left.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn decode_part(&self, image: &mut Image) -> Outcome<bool> {
        let decoding = self.decoding(image)?;
        let (decoding, is_left) = self.decoder.advance(decoding).map_err(device_error)?;
        image.decoding = Some(decoding);
        Ok(is_left)
    }

    /// Decodes what is left of an image, and improves the map for previews by it.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] when a pixel is not finite; else when the device is out of memory or fails.
    pub(crate) fn finish(&mut self, mut image: Image) -> Outcome<RgbImage> {
        let decoding = self.decoding(&mut image)?;
        let pixels = self.decoder.complete(decoding).map_err(device_error)?;
        let bytes = vae::to_rgb_bytes(&pixels).map_err(device_error)?;
        let bytes = bytes.ok_or(EngineError::NotFinite)?;
        let result = RgbImage::new(image.width, image.height, bytes)
            .ok_or_else(|| EngineError::Fatal("the decoder returned an image of another size".to_owned()))?;
        // The image is complete: an error here must not withhold it.
        let learned = image.grid.unpack(&image.latents).and_then(|latents| self.projection.learn(&latents, &pixels));
        if let Err(error) = learned {
            tracing::debug!(%error, "previews learned nothing from an image");
        }
        Ok(result)
    }

    /// A small rough image of where the schedule is headed. `None` before the first step.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn preview(&self, image: &Image) -> Result<Option<RgbImage>> {
        let Some(latents) = image.expected()? else { return Ok(None) };
        self.projection.image(&image.grid.unpack(&latents)?)
    }
}

/// A tokenizer's error, for the client.
#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
pub(crate) fn unreadable_prompt(error: TokenizerError) -> EngineError {
    tracing::debug!(%error, "a tokenizer rejected a prompt");
    EngineError::Request("the prompt cannot be tokenized".to_owned())
}
