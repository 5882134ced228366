//! The packed token stream of one step: which tokens belong to which sequence, and what holds for all blocks.

use candle_core::{Result, Tensor, bail};

use super::modulation::Modulated;
use super::remembered::CacheUse;
use super::residuals::Residuals;
use crate::engine::adapted::{AdapterSet, Changes};
use crate::engine::ops::rope::Rotary;
use crate::engine::ops::{Places, Segments};

/// One sequence's part in a step: an image, or one of the two passes of true classifier-free guidance.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// Noisy latents as packed tokens, `[image tokens, latent width]`, f32.
    pub(crate) latents: &'a Tensor,
    /// Channels that are joined to those of the latents, `[image tokens, joined channels]`, f32.
    pub(crate) joined: Option<&'a Tensor>,
    /// Latents of reference images, as packed tokens behind those of the image, `[reference tokens, latent width]`, f32.
    pub(crate) references: Option<&'a Tensor>,
    /// From [`super::Transformer::embed_text`], `[text tokens, hidden]`.
    pub(crate) text: &'a Tensor,
    /// From [`super::Transformer::embed_condition`], `[1, hidden]`.
    pub(crate) condition: &'a Tensor,
    /// From [`super::Transformer::modulations`], for this noise level and condition, if it is there already.
    pub(crate) modulation: Option<&'a Tensor>,
    /// The rotary tables of its text, image and reference tokens.
    pub(crate) rotary: &'a Rotary,
    /// Noise level of this step, 1 down to 0.
    pub(crate) sigma: f32,
    /// What changes the model for it.
    pub(crate) adapters: &'a AdapterSet,
    /// Its cache in this step. `None`: all blocks run for it, and nothing is remembered.
    pub(crate) cache: Option<CacheUse<'a>>,
    /// What ControlNets add to its image in this step. `None`: nothing.
    pub(crate) residuals: Option<&'a Residuals>,
}

/// What the modulation of a sequence in a step depends on.
#[derive(Clone, Copy)]
pub(crate) struct Conditioned<'a> {
    /// Noise level, 1 down to 0.
    pub(crate) sigma: f32,
    /// From [`super::Transformer::embed_condition`], `[1, hidden]`.
    pub(crate) condition: &'a Tensor,
    /// What changes the model for it.
    pub(crate) adapters: &'a AdapterSet,
}

impl<'a> Sequence<'a> {
    /// The sequence with what ControlNets add to it. A remembered change would not have that: such a step takes no cache.
    pub(crate) fn with_residuals(self, residuals: Option<&'a Residuals>) -> Self {
        let cache = if residuals.is_some() { None } else { self.cache };
        Self { cache, residuals, ..self }
    }

    /// Tokens of the image and of its reference images.
    pub(super) fn image_length(&self) -> Result<usize> {
        let references = self.references.map_or(Ok(0), |references| references.dim(0))?;
        Ok(self.latents.dim(0)? + references)
    }

    /// What its modulation depends on.
    pub(crate) fn conditioned(&self) -> Conditioned<'a> {
        Conditioned { sigma: self.sigma, condition: self.condition, adapters: self.adapters }
    }
}

/// What is the same in all blocks of a step.
pub(super) struct Stream<'a> {
    pub(super) image_segments: Segments,
    pub(super) text_segments: Segments,
    pub(super) joint_segments: Segments,
    /// What adapters change in the rows of each stream.
    pub(super) image_changes: Changes<'a>,
    pub(super) text_changes: Changes<'a>,
    pub(super) joint_changes: Changes<'a>,
    /// Where image and text tokens go in the joint stream: each sequence's text first.
    pub(super) image_places: Places,
    pub(super) text_places: Places,
    /// Tables of the image tokens alone.
    pub(super) image_rotary: Rotary,
    /// Tables of text and image tokens in joint order.
    pub(super) joint_rotary: Rotary,
    /// Shifts, scales and gates of all blocks.
    pub(super) modulated: Modulated,
    /// What ControlNets add to each sequence's image.
    pub(super) residuals: Vec<Option<&'a Residuals>>,
}

impl<'a> Stream<'a> {
    /// Packs sequences, in their order.
    ///
    /// # Errors
    /// When a sequence's tables are not of its tokens, or the device is out of memory.
    pub(super) fn new(sequences: &[Sequence<'a>], modulated: Modulated) -> Result<Self> {
        let mut image_rotary = Vec::with_capacity(sequences.len());
        let (mut image_lengths, mut text_lengths) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let (text_length, image_length) = (sequence.text.dim(0)?, sequence.image_length()?);
            if sequence.rotary.tokens() != text_length + image_length {
                bail!("{text_length} and {image_length} tokens with tables of {}", sequence.rotary.tokens());
            }
            text_lengths.push(text_length);
            image_lengths.push(image_length);
            image_rotary.push(sequence.rotary.starting_at(text_length)?);
        }
        let joint_lengths = text_lengths.iter().zip(&image_lengths).map(|(text, image)| text + image);
        let joint_rotary: Vec<&Rotary> = sequences.iter().map(|sequence| sequence.rotary).collect();
        let joint_segments = Segments::from_lengths(joint_lengths);
        let (text_segments, image_segments) =
            (Segments::from_lengths(text_lengths.iter().copied()), Segments::from_lengths(image_lengths));
        let text_starts: Vec<usize> = joint_segments.ranges().map(|range| range.start).collect();
        let image_starts = text_starts.iter().zip(&text_lengths).map(|(start, length)| start + length);
        let changes = |segments: &Segments| {
            Changes::of(segments.ranges().zip(sequences.iter().map(|sequence| sequence.adapters)))
        };
        Ok(Self {
            image_changes: changes(&image_segments),
            text_changes: changes(&text_segments),
            joint_changes: changes(&joint_segments),
            image_places: Places::new(&image_segments, image_starts),
            text_places: Places::new(&text_segments, text_starts.iter().copied()),
            joint_segments,
            image_segments,
            text_segments,
            image_rotary: Rotary::concatenate(&image_rotary.iter().collect::<Vec<_>>())?,
            joint_rotary: Rotary::concatenate(&joint_rotary)?,
            modulated,
            residuals: sequences.iter().map(|sequence| sequence.residuals).collect(),
        })
    }

    /// Text and image streams as one, sequence by sequence, text first.
    pub(super) fn join(&self, text: &Tensor, image: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(2 * self.text_segments.count());
        for (text_range, image_range) in self.text_segments.ranges().zip(self.image_segments.ranges()) {
            parts.push(text.narrow(0, text_range.start, text_range.len())?);
            parts.push(image.narrow(0, image_range.start, image_range.len())?);
        }
        Tensor::cat(&parts, 0)
    }

    /// The inverse of [`Self::join`]: (text, image).
    pub(super) fn split(&self, joint: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut text, mut image) = (Vec::new(), Vec::new());
        for (sequence, range) in self.joint_segments.ranges().enumerate() {
            let text_length = self.text_segments.range(sequence).len();
            text.push(joint.narrow(0, range.start, text_length)?);
            image.push(joint.narrow(0, range.start + text_length, range.len() - text_length)?);
        }
        Ok((Tensor::cat(&text, 0)?, Tensor::cat(&image, 0)?))
    }
}
