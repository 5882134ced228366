//! An image in strips of rows, so that what one operation holds is a strip. A strip is read with the rows above and below it, so
//! strips meet without a seam.
//!
//! Must not know which layers there are.

use std::iter::Fuse;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::{GroupNorm, Moments};
use crate::engine::ops::{copied_rows, stacked};

/// Strips, from top to bottom: `[1, channels, rows, width]` each.
pub(super) struct Strips(Vec<Tensor>);

/// Strips that are computed or released one by one, from top to bottom.
pub(super) type EachStrip<'a> = Box<dyn Iterator<Item = Result<Tensor>> + 'a>;

impl Strips {
    /// Strips of at most so many rows.
    pub(super) fn cut(image: &Tensor, rows: usize) -> Result<Self> {
        let height = image.dim(2)?;
        let tops = (0..height).step_by(rows.max(1));
        tops.map(|top| copied_rows(image, top..height.min(top + rows.max(1)))).collect()
    }

    /// The image.
    pub(super) fn joined(self) -> Result<Tensor> {
        stacked(&self.0)
    }

    /// Each strip; all of them stay.
    pub(super) fn each(&self) -> EachStrip<'_> {
        Box::new(self.0.iter().cloned().map(Ok))
    }

    /// Each strip, which is released once it was used.
    pub(super) fn released(self) -> EachStrip<'static> {
        Box::new(self.0.into_iter().map(Ok))
    }

    /// Norm, SiLU and a convolution of the image, in f32. Strips are released as they are read.
    pub(super) fn convolved(self, norm: &GroupNorm, convolution: &Convolution) -> Result<Tensor> {
        let scales = norm.scales(&moments(self.each(), norm)?)?;
        let strips = bordered(self.released()).map(|strip| {
            let Bordered { seen, rows, .. } = strip?;
            convolution.forward_rows(&norm.forward_silu_by(&seen, &scales)?, &rows, None)?.to_dtype(DType::F32)
        });
        Tensor::cat(&strips.collect::<Result<Vec<_>>>()?, 2)
    }
}

impl FromIterator<Tensor> for Strips {
    fn from_iter<I: IntoIterator<Item = Tensor>>(strips: I) -> Self {
        Self(strips.into_iter().collect())
    }
}

/// The statistics of strips.
pub(super) fn moments(strips: EachStrip, norm: &GroupNorm) -> Result<Vec<Moments>> {
    strips.map(|strip| norm.moments(&strip?)).collect()
}

/// A convolution of each strip.
pub(super) fn each_convolved<'a>(strips: EachStrip<'a>, convolution: &'a Convolution) -> EachStrip<'a> {
    Box::new(bordered(strips).map(move |strip| {
        let Bordered { seen, rows, .. } = strip?;
        convolution.forward_rows(&seen, &rows, None)
    }))
}

/// A strip, alone and between the rows that border it.
pub(super) struct Bordered {
    pub(super) strip: Tensor,
    /// The strip with the row above it and the row below it, as far as the image has them.
    pub(super) seen: Tensor,
    /// The strip's rows in that.
    pub(super) rows: Range<usize>,
}

/// Each strip with its borders. Two strips are held at a time.
pub(super) fn bordered(strips: EachStrip<'_>) -> impl Iterator<Item = Result<Bordered>> {
    WithBorders { strips: strips.fuse(), above: None, next: None }
}

struct WithBorders<'a> {
    strips: Fuse<EachStrip<'a>>,
    /// The last row of the strip before.
    above: Option<Tensor>,
    /// The next strip, if it was read already.
    next: Option<Tensor>,
}

impl WithBorders<'_> {
    fn read(&mut self) -> Result<Option<Bordered>> {
        let strip = match self.next.take() {
            None => self.strips.next().transpose()?,
            read => read,
        };
        let Some(strip) = strip else { return Ok(None) };
        self.next = self.strips.next().transpose()?;
        let height = strip.dim(2)?;
        let below = self.next.as_ref().map(|next| copied_rows(next, 0..1)).transpose()?;
        let first = usize::from(self.above.is_some());
        let parts: Vec<Tensor> = [self.above.take(), Some(strip.clone()), below].into_iter().flatten().collect();
        self.above = Some(copied_rows(&strip, height - 1..height)?);
        Ok(Some(Bordered { strip, seen: stacked(&parts)?, rows: first..first + height }))
    }
}

impl Iterator for WithBorders<'_> {
    type Item = Result<Bordered>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_strip_is_seen_with_the_rows_that_border_it() {
        let values: Vec<f32> = (0..7_u8).map(f32::from).collect();
        let image = Tensor::from_vec(values, (1, 1, 7, 1), &Device::Cpu).expect("an image");
        let strips = Strips::cut(&image, 3).expect("cuts");
        let seen: Vec<(Vec<f32>, Range<usize>)> = bordered(strips.each())
            .map(|strip| strip.and_then(|strip| Ok((strip.seen.flatten_all()?.to_vec1()?, strip.rows))))
            .collect::<Result<_>>()
            .expect("strips");
        let expected =
            [(vec![0.0, 1.0, 2.0, 3.0], 0..3), (vec![2.0, 3.0, 4.0, 5.0, 6.0], 1..4), (vec![5.0, 6.0], 1..2)];
        assert_eq!(seen, expected);
        let joined = strips.joined().and_then(|joined| joined.flatten_all()?.to_vec1::<f32>()).expect("values");
        assert_eq!(joined, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
