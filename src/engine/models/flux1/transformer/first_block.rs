//! The first-block cache in a step: which sequences leave behind the first block, and what the others are remembered by.
//!
//! Lossy, and for sequences that ask for it alone. Behind the first block, its change of a sequence's image tokens is compared with
//! the one that is remembered of the last step that ran all blocks: mean of |new - old|, divided by the mean of |old|. Where that is
//! at most the threshold, the other blocks are left out for this sequence, and their remembered change is added. Otherwise, as
//! in a first step, all blocks run and both changes are remembered. The rule is that of `FirstBlockCacheConfig` in diffusers (after
//! `FBCache` of ParaAttention), for each image and each pass by itself: there is no rule for the last step.
//!
//! A sequence's decision and bits depend on its own rows only. Those that go on are a smaller packed stream.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor, bail};

use super::remembered::{CacheOutcome, Remembered};
use super::stream::{Sequence, Stream};
use crate::engine::ops::Segments;

/// The way of the sequences of a step through the blocks.
pub(super) struct Course<'s, 'a> {
    sequences: &'s [Sequence<'a>],
    /// The image tokens in front of the first block, until that has run. `None` as well where no sequence has a cache.
    before: Option<Tensor>,
    /// Of each sequence, once the first block has run. None where no sequence has a cache.
    parts: Vec<Part>,
    /// Those that go on, if some do not.
    rest: Option<Stream<'a>>,
}

/// What becomes of a sequence behind the first block.
enum Part {
    /// It goes on, and has no cache.
    Plain,
    /// It goes on, and is remembered.
    Complete {
        /// The first block's change.
        first: Tensor,
        /// Its image tokens behind the first block.
        behind: Tensor,
    },
    /// It leaves with these image tokens.
    Skipped(Tensor),
}

impl Part {
    fn goes_on(&self) -> bool {
        !matches!(self, Self::Skipped(_))
    }
}

impl<'s, 'a> Course<'s, 'a> {
    /// Of sequences whose image tokens in front of the first block are `image [image tokens, hidden]`, packed.
    pub(super) fn new(sequences: &'s [Sequence<'a>], image: &Tensor) -> Self {
        let has_cache = sequences.iter().any(|sequence| sequence.cache.is_some());
        Self { sequences, before: has_cache.then(|| image.clone()), parts: Vec::new(), rest: None }
    }

    /// Whether the next block is the first one, and some sequence has a cache.
    pub(super) fn is_to_be_split(&self) -> bool {
        self.before.is_some()
    }

    /// The stream of those that are on the way, out of that of all.
    pub(super) fn stream<'b>(&'b self, all: &'b Stream<'a>) -> &'b Stream<'a> {
        self.rest.as_ref().unwrap_or(all)
    }

    /// Lets those leave that may, and returns text and image tokens of the others. `None`: all have left.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(super) fn split(
        &mut self,
        (text, image): (Tensor, Tensor),
        all: &Stream<'a>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let Some(before) = self.before.take() else { return Ok(Some((text, image))) };
        self.parts = self.parts_of(&before, &image, &all.image_segments)?;
        let staying: Vec<usize> =
            (0..).zip(&self.parts).filter(|(_, part)| part.goes_on()).map(|(index, _)| index).collect();
        if staying.len() == self.sequences.len() {
            return Ok(Some((text, image)));
        }
        if staying.is_empty() {
            return Ok(None);
        }
        let sequences: Vec<Sequence> = staying.iter().map(|index| self.sequences[*index]).collect();
        self.rest = Some(Stream::new(&sequences, all.modulated.of_sequences(&staying)?)?);
        let kept = |tokens: &Tensor, segments: &Segments| rows_of(tokens, segments, &staying);
        Ok(Some((kept(&text, &all.text_segments)?, kept(&image, &all.image_segments)?)))
    }

    /// What becomes of each sequence: `before` and `image` are the image tokens in front of and behind the first block.
    fn parts_of(&self, before: &Tensor, image: &Tensor, segments: &Segments) -> Result<Vec<Part>> {
        let cached: Vec<Option<Changed>> = self
            .sequences
            .iter()
            .zip(segments.ranges())
            .map(|(sequence, range)| {
                sequence.cache.map(|cache| Changed::of(cache.remembered, before, image, range)).transpose()
            })
            .collect::<Result<_>>()?;
        let mut distances = distances(cached.iter().flatten())?.into_iter();
        let part = |(sequence, changed): (&Sequence, Option<Changed>)| -> Result<Part> {
            let (Some(cache), Some(changed)) = (sequence.cache, changed) else { return Ok(Part::Plain) };
            let distance = if changed.means.is_some() { distances.next() } else { None };
            match cache.remembered.zip(distance) {
                // Where the numbers are not finite, neither is the distance, and nothing is left out.
                Some((remembered, distance)) if distance <= cache.threshold => {
                    Ok(Part::Skipped((changed.behind + &remembered.rest)?))
                }
                _ => Ok(Part::Complete { first: changed.first, behind: changed.behind }),
            }
        };
        self.sequences.iter().zip(cached).map(part).collect()
    }

    /// The image tokens of all sequences, packed in their order, from those of the ones that went through all blocks (`None`: there are
    /// none); and how each with a cache went.
    ///
    /// # Errors
    /// When the device is out of memory, or there are none of a sequence.
    pub(super) fn finish(self, image: Option<Tensor>, all: &Stream<'a>) -> Result<(Tensor, Vec<Option<CacheOutcome>>)> {
        let segments = &self.stream(all).image_segments;
        if self.parts.is_empty() {
            let Some(image) = image else { bail!("a block returned no tokens") };
            return Ok((image, self.sequences.iter().map(|_| None).collect()));
        }
        let mut ranges = segments.ranges();
        let mut next = || match (&image, ranges.next()) {
            (Some(image), Some(range)) => image.narrow(0, range.start, range.len()),
            _ => bail!("a sequence went through the blocks and has no tokens"),
        };
        let (mut images, mut outcomes) = (Vec::new(), Vec::new());
        for part in &self.parts {
            let (image, outcome) = match part {
                Part::Plain => (next()?, None),
                Part::Skipped(image) => (image.clone(), Some(CacheOutcome::Skipped)),
                Part::Complete { first, behind } => {
                    let image = next()?;
                    let remembered = Remembered { first: first.clone(), rest: (&image - behind)? };
                    (image, Some(CacheOutcome::Complete(remembered)))
                }
            };
            images.push(image);
            outcomes.push(outcome);
        }
        Ok((Tensor::cat(&images, 0)?, outcomes))
    }
}

/// The rows of some sequences, packed.
fn rows_of(tokens: &Tensor, segments: &Segments, sequences: &[usize]) -> Result<Tensor> {
    let ranges = sequences.iter().map(|sequence| segments.range(*sequence));
    let rows: Vec<Tensor> = ranges.map(|range| tokens.narrow(0, range.start, range.len())).collect::<Result<_>>()?;
    Tensor::cat(&rows, 0)
}

/// What the first block changed of a sequence's image tokens.
struct Changed {
    first: Tensor,
    behind: Tensor,
    /// The mean of |new - old|, and that of |old|, `[1]` each, f32. `None` where nothing is remembered.
    means: Option<[Tensor; 2]>,
}

impl Changed {
    fn of(remembered: Option<&Remembered>, before: &Tensor, image: &Tensor, range: Range<usize>) -> Result<Self> {
        let behind = own_rows(image, &range)?;
        let first = (&behind - before.narrow(0, range.start, range.len())?)?;
        let means = |remembered: &Remembered| -> Result<[Tensor; 2]> {
            let old = remembered.first.to_dtype(DType::F32)?;
            Ok([mean_of_absolutes(&(first.to_dtype(DType::F32)? - &old)?)?, mean_of_absolutes(&old)?])
        };
        let means = remembered.map(means).transpose()?;
        Ok(Self { first, behind, means })
    }
}

/// The rows of one sequence, which do not keep the memory of the others.
fn own_rows(tokens: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    let rows = tokens.narrow(0, range.start, range.len())?;
    if range.len() == tokens.dim(0)? { Ok(rows) } else { rows.force_contiguous() }
}

/// `[tokens, hidden]` f32 -> `[1]`. Row by row first: a single sum of so many numbers would lose digits.
fn mean_of_absolutes(x: &Tensor) -> Result<Tensor> {
    x.abs()?.mean(D::Minus1)?.mean_keepdim(0)
}

/// How far each change is from the remembered one, for those where one is remembered, in their order. The device is read once
/// for all.
fn distances<'c>(changed: impl Iterator<Item = &'c Changed>) -> Result<Vec<f64>> {
    let means: Vec<&Tensor> = changed.filter_map(|changed| changed.means.as_ref()).flatten().collect();
    if means.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = Tensor::cat(&means, 0)?.to_vec1::<f32>()?;
    Ok(numbers.chunks_exact(2).map(|pair| f64::from(pair[0]) / f64::from(pair[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tokens(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).expect("a matrix")
    }

    fn remembered(first: &[[f32; 2]]) -> Remembered {
        Remembered { first: tokens(first), rest: tokens(first) }
    }

    /// Two sequences of one and two tokens. What is before and behind the other one's rows changes nothing.
    #[test]
    fn a_distance_is_the_mean_change_relative_to_the_remembered_one() {
        let before = tokens(&[[7.0, 7.0], [1.0, 1.0], [2.0, 2.0]]);
        let image = tokens(&[[8.0, 6.0], [2.0, 0.0], [5.0, 2.0]]);
        let (one, two) = (remembered(&[[1.0, -1.0]]), remembered(&[[1.0, -1.0], [1.0, 1.0]]));
        let changed = |remembered, range| Changed::of(remembered, &before, &image, range).expect("computes");
        let all = [changed(Some(&one), 0..1), changed(None, 0..1), changed(Some(&two), 1..3)];
        // Unchanged; nothing to compare with; changed by 2 and 1 in four numbers of mean 1.
        assert_eq!(distances(all.iter()).expect("read"), [0.0, 0.75]);
        let first = all[2].first.to_vec2::<f32>().expect("numbers");
        assert_eq!(first, [[1.0, -1.0], [3.0, 0.0]]);
        assert_eq!(all[2].behind.to_vec2::<f32>().expect("numbers"), [[2.0, 0.0], [5.0, 2.0]]);
        assert!(distances([].iter()).expect("nothing to read").is_empty());
    }

    /// A comparison with either is false: then all blocks run.
    #[test]
    fn no_change_and_what_is_not_finite_are_at_no_distance() {
        let (still, odd) = (remembered(&[[0.0, 0.0]]), remembered(&[[f32::NAN, 1.0]]));
        let x = tokens(&[[1.0, 1.0]]);
        let changed = |remembered| Changed::of(Some(remembered), &x, &x, 0..1).expect("computes");
        let all = [changed(&still), changed(&odd)];
        assert!(distances(all.iter()).expect("read").into_iter().all(f64::is_nan));
    }
}
