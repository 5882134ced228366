//! What the first-block cache keeps of a pass between two steps. Plain data: `first_block.rs` makes it and uses it.

use candle_core::{Result, Tensor};

/// The cache of a sequence in a step.
#[derive(Clone, Copy)]
pub(crate) struct CacheUse<'a> {
    /// How much the first block's change may differ from the remembered one, relative to it: mean of absolute values.
    pub(crate) threshold: f64,
    /// Of the last step that ran all blocks; `None` before there was one.
    pub(crate) remembered: Option<&'a Remembered>,
}

/// What a step that ran all blocks leaves behind: how it changed the image tokens of a sequence, with those of its references.
pub(crate) struct Remembered {
    /// By the first block, `[image tokens, hidden]`, in the stream's dtype.
    pub(super) first: Tensor,
    /// By all the others, the same.
    pub(super) rest: Tensor,
}

#[cfg(test)]
impl Remembered {
    /// Bytes of both.
    pub(crate) fn bytes(&self) -> usize {
        [&self.first, &self.rest].map(|change| change.elem_count() * change.dtype().size_in_bytes()).iter().sum()
    }
}

/// How a sequence with a cache went through a step.
pub(crate) enum CacheOutcome {
    /// Through all blocks.
    Complete(Remembered),
    /// Only through the first one.
    Skipped,
}

/// What a step predicts for a sequence.
pub(crate) struct Prediction {
    /// The velocity, noise minus image: `[image tokens, in_channels]`, f32.
    pub(crate) velocity: Tensor,
    /// `None` without a cache.
    pub(crate) cached: Option<CacheOutcome>,
}

impl Prediction {
    /// That of a step without a cache.
    pub(crate) fn uncached(velocity: Tensor) -> Self {
        Self { velocity, cached: None }
    }

    /// One for each sequence, from what there is of each.
    ///
    /// # Errors
    /// When one of the velocities could not be computed.
    pub(super) fn each(
        velocities: impl IntoIterator<Item = Result<Tensor>>,
        outcomes: impl IntoIterator<Item = Option<CacheOutcome>>,
    ) -> Result<Vec<Self>> {
        let pairs = velocities.into_iter().zip(outcomes);
        pairs.map(|(velocity, cached)| Ok(Self { velocity: velocity?, cached })).collect()
    }
}
