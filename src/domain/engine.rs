//! The interface between the queue and the device: one trait and plain data. No tensor crosses it.

use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;

/// An image the engine has admitted. Given out by [`StepEngine::admit`], valid until `finish` or `release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

/// Limits of one engine, in images and in tokens (16×16 pixel patches plus prompt tokens, counted once per pass).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Maximum images admitted at a time.
    pub images_max: usize,
    /// Maximum tokens in one `step`, over all its images and passes.
    pub step_tokens_max: usize,
}

/// Why an engine call failed, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// This image cannot be generated; the others are unharmed. The reason may be shown to the client.
    #[error("{0}")]
    Request(String),
    /// This image has NaN or infinite values; the others are unharmed.
    #[error("the model produced numbers that are not finite")]
    NotFinite,
    /// The device ran out of memory; fewer images at once may fit.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The engine is broken: fail its images, report not ready, rebuild it. Not to be shown to clients.
    #[error("the engine failed: {0}")]
    Fatal(String),
    /// The device's driver refuses all further work of this process: only a new process can use the device again. Not to
    /// be shown to clients.
    #[error("the device is lost to this process: {0}")]
    DeviceLost(String),
}

impl EngineError {
    /// Whether the engine is broken, for all its images.
    #[must_use]
    pub fn breaks_engine(&self) -> bool {
        matches!(self, Self::Fatal(_) | Self::DeviceLost(_))
    }
}

/// Maximum drafts of one image.
pub const DRAFTS_MAX: u32 = 3;

/// What a call of [`StepEngine::draft_part`] has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Draft {
    /// There is none: before the image's first step, where memory does not suffice, and from an engine without drafts.
    Unavailable,
    /// Parts are left.
    Unfinished,
    /// The whole draft, in the size of the image.
    Done(RgbImage),
}

/// An engine that generates images step by step. One per device; it is built on its own OS thread and stays there.
///
/// Contract (batch invariance): an image's pixels depend on its [`GenerateSpec`] alone, never on the other slots of its
/// steps.
pub trait StepEngine {
    /// What fits now. May change after an `OutOfMemory`; ask again then.
    fn limits(&self) -> EngineLimits;

    /// The sequence length, in tokens, at which attention costs as much as all linear layers together. It makes the
    /// work of images of different sizes comparable.
    fn attention_balance_tokens(&self) -> usize {
        usize::MAX
    }

    /// Whether what an image needs beside the model is there: its adapters. The first call begins to load it, and further calls
    /// go on, none for longer than a step takes. Calling it is optional: [`StepEngine::admit`] waits for what is missing.
    ///
    /// # Errors
    /// [`EngineError::Request`] when it cannot be used.
    fn prepare(&mut self, _spec: &GenerateSpec) -> Result<bool, EngineError> {
        Ok(true)
    }

    /// Encodes the prompt, samples the noise, and takes a slot for the image.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when it does not fit now; [`EngineError::Request`] when it never will.
    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError>;

    /// Does a part of encoding the images of an admitted request, so that others need not wait for all of it; the engine chooses
    /// how much. `true`: nothing is left. Calling it is optional: [`StepEngine::step`] does what is left.
    ///
    /// # Errors
    /// As [`StepEngine::admit`], and the slot is free then.
    fn encode_part(&mut self, _slot: Slot) -> Result<bool, EngineError> {
        Ok(true)
    }

    /// Runs one denoising step for each of `slots`, which may differ in size and step. A slot that has done all its
    /// steps must not be among them.
    ///
    /// # Errors
    /// On any error no slot has advanced.
    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError>;

    /// Does a part of what [`StepEngine::finish`] does, so that others need not wait for all of it; the engine chooses
    /// how much. `true`: nothing is left that is worth a part. Calling it is optional; the image is the same.
    ///
    /// # Errors
    /// As [`StepEngine::finish`], and the slot is free then.
    fn decode_part(&mut self, _slot: Slot) -> Result<bool, EngineError> {
        Ok(true)
    }

    /// Decodes what is left of an image that has done all its steps, and frees its slot (also on error).
    ///
    /// # Errors
    /// [`EngineError::NotFinite`], and [`EngineError::Request`] when the image is not done.
    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError>;

    /// A small, rough preview of the image, cheap beside a step. `None` before its first step, and from an engine
    /// without previews.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when it does not fit.
    fn preview(&mut self, _slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        Ok(None)
    }

    /// Does a part of decoding a draft: the image with which its steps would end if they went on as the last one, as the first call
    /// finds it. The engine chooses how much. It keeps one unfinished draft: a call for another slot drops it, and so may encoding
    /// or decoding an image; the next call then begins anew. The image itself stays as it is.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when it does not fit, and [`EngineError::NotFinite`]. The slot stays valid.
    fn draft_part(&mut self, _slot: Slot) -> Result<Draft, EngineError> {
        Ok(Draft::Unavailable)
    }

    /// Frees an image's slot without decoding it. Unknown slots are ignored.
    fn release(&mut self, slot: Slot);
}

/// Observes the progress of loading a model. An observer must not block the engine.
pub trait LoadObserver: Send + Sync {
    /// Starts the count anew: this many bytes will be read.
    fn planned(&self, bytes: u64);

    /// This many more bytes were read.
    fn loaded(&self, bytes: u64);
}

/// Ignores progress.
impl LoadObserver for () {
    fn planned(&self, _: u64) {}

    fn loaded(&self, _: u64) {}
}
