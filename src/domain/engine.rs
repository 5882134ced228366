//! The border between the queue and the device: one trait and plain data. No tensor crosses it.

use crate::domain::spec::GenerateSpec;

/// An image the engine has admitted. Given out by [`StepEngine::admit`], valid until `finish` or `release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

/// What one engine can hold. Speaks in tokens (16×16 pixel patches plus prompt tokens, counted once per pass)
/// and images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most images admitted at one time.
    pub images_max: usize,
    /// Most tokens in one `step`, over all its images and passes.
    pub step_tokens_max: usize,
}

/// Why an engine's verb failed, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// This image cannot be drawn; the others are unharmed. The reason may be shown to the client.
    #[error("{0}")]
    Request(String),
    /// The numbers of this image are no numbers any more; the others are unharmed.
    #[error("the model produced numbers that are not finite")]
    NotFinite,
    /// The device's memory did not suffice; fewer images at once may do.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The engine is broken: fail its images, report not ready, rebuild it. Not for clients' eyes.
    #[error("the engine failed: {0}")]
    Fatal(String),
}

/// An engine that draws images step by step. One per device; built on, and never leaving, its own OS thread.
///
/// The contract that all callers rely on: an image's pixels depend on its [`GenerateSpec`] alone, never on which
/// other slots share its steps.
pub trait StepEngine {
    /// What fits. May change after an `OutOfMemory`; ask again then.
    fn limits(&self) -> EngineLimits;

    /// The length of a sequence, in tokens, at which attention costs as much as all linear layers together. By this the
    /// work of images of unlike sizes is compared.
    fn attention_balance_tokens(&self) -> usize {
        usize::MAX
    }

    /// Encodes the prompt, draws the noise, and takes a place for the image.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when it does not fit now; [`EngineError::Request`] when it never will.
    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError>;

    /// Does one denoising step of each of `slots`: images of any sizes, at any steps. A slot that has done all its
    /// steps must not be among them.
    ///
    /// # Errors
    /// On any error no slot has moved.
    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError>;

    /// Does a part of what [`StepEngine::finish`] does, so that others need not wait for all of it: a fraction of the
    /// whole, of its own choosing. `true`: nothing is left that is worth a part. Never has to be called; the image is the
    /// same.
    ///
    /// # Errors
    /// As [`StepEngine::finish`], and the place is free then.
    fn decode_part(&mut self, _slot: Slot) -> Result<bool, EngineError> {
        Ok(true)
    }

    /// Decodes what is left of an image that has done all its steps, and frees its place (also on error).
    ///
    /// # Errors
    /// [`EngineError::NotFinite`], and [`EngineError::Request`] when the image is not done.
    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError>;

    /// What an image is going to look like, as far as can be told now: small and rough, and cheap beside a step. `None`
    /// before its first step, and from an engine that has none to give.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when there is no room for it.
    fn preview(&mut self, _slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        Ok(None)
    }

    /// Frees an image's place without decoding it. Unknown slots are ignored.
    fn release(&mut self, slot: Slot);
}

/// Hears how far the loading of a model is. Whoever hears of it must not keep the engine waiting.
pub trait LoadObserver: Send + Sync {
    /// So many bytes are going to be read. What was said before does not count any more.
    fn planned(&self, bytes: u64);

    /// So many more have been.
    fn loaded(&self, bytes: u64);
}

/// Does not care.
impl LoadObserver for () {
    fn planned(&self, _: u64) {}

    fn loaded(&self, _: u64) {}
}

/// 8-bit RGB pixels, row by row from the top left, three bytes each.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// Wraps pixels. `None` unless there are exactly `width × height × 3` bytes.
    #[must_use]
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        let expected = (width as usize).checked_mul(height as usize)?.checked_mul(3)?;
        (pixels.len() == expected).then_some(Self { width, height, pixels })
    }

    /// Pixels across.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels down.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Whether there is nothing on it at all: every byte is zero.
    #[must_use]
    pub fn is_black(&self) -> bool {
        self.pixels.iter().all(|byte| *byte == 0)
    }

    /// The bytes, `width × height × 3` of them.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}
