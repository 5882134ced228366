//! Rotary tables: cosines and sines of the angles of a token stream.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

/// Cosines and sines of every rotary angle of a token stream, always in f32: in bf16 the angles of a 1024×1024 image
/// would be off by up to 0.18 rad.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// `[tokens, head width / 2]`
    pub(crate) cos: Tensor,
    /// `[tokens, head width / 2]`
    pub(crate) sin: Tensor,
}

impl Rotary {
    /// The tables of tokens at `positions` on some axes. `axes` are the head's dimensions given to each, `theta` the base of the
    /// frequencies. Angles are computed in f64 as diffusers' `get_1d_rotary_pos_embed` does.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn at<const AXES: usize>(
        positions: impl IntoIterator<Item = [usize; AXES]>,
        axes: [usize; AXES],
        theta: f64,
        device: &Device,
    ) -> Result<Self> {
        let pairs = axes.iter().sum::<usize>() / 2;
        let mut angles = Vec::new();
        for position in positions {
            for (axis, position) in axes.into_iter().zip(position) {
                let frequency = |pair: usize| theta.powf(-(2.0 * pair as f64) / axis as f64);
                angles.extend((0..axis / 2).map(|pair| position as f64 * frequency(pair)));
            }
        }
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| function(angle) as f32).collect();
            Tensor::from_vec(values, (angles.len() / pairs.max(1), pairs), device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// These tables behind those of `text_tokens` text tokens, for one sequence of the joint stream. They are the same in every
    /// step of an image.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn after_text(&self, text_tokens: usize) -> Result<Self> {
        let text = Self::identity(text_tokens, self.cos.dim(1)?, self.cos.device())?;
        Self::concatenate(&[&text, self])
    }

    /// The tables of all tokens from `start` on, without a copy.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn starting_at(&self, start: usize) -> Result<Self> {
        let rest = self.tokens().saturating_sub(start);
        Ok(Self { cos: self.cos.narrow(0, start, rest)?, sin: self.sin.narrow(0, start, rest)? })
    }

    /// The tables of some tokens, without a copy.
    ///
    /// # Errors
    /// When there are fewer.
    pub(crate) fn of_rows(&self, rows: &Range<usize>) -> Result<Self> {
        let part = |table: &Tensor| table.narrow(0, rows.start, rows.len());
        Ok(Self { cos: part(&self.cos)?, sin: part(&self.sin)? })
    }

    /// The number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The tables of several streams, one after the other.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn concatenate(parts: &[&Self]) -> Result<Self> {
        let cos: Vec<_> = parts.iter().map(|part| &part.cos).collect();
        let sin: Vec<_> = parts.iter().map(|part| &part.sin).collect();
        Ok(Self { cos: Tensor::cat(&cos, 0)?, sin: Tensor::cat(&sin, 0)? })
    }

    /// The tables of `tokens` tokens at position zero, which change nothing.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(super) fn identity(tokens: usize, pairs: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            cos: Tensor::ones((tokens, pairs), DType::F32, device)?,
            sin: Tensor::zeros((tokens, pairs), DType::F32, device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_image_follow_those_of_the_text() {
        let rotary = Rotary::at((0..6).map(|token| [0, token / 2, token % 2]), [4, 6, 6], 10_000.0, &Device::Cpu)
            .expect("tables");
        let joint = rotary.after_text(5).expect("joint");
        assert_eq!(
            (joint.tokens(), joint.cos.get(4).and_then(|row| row.to_vec1::<f32>()).expect("a row")),
            (11, vec![1.0; 8])
        );
        let image = joint.starting_at(5).expect("image");
        for (found, expected) in [(&image.cos, &rotary.cos), (&image.sin, &rotary.sin)] {
            assert_eq!(found.to_vec2::<f32>().expect("values"), expected.to_vec2::<f32>().expect("values"));
        }
    }
}
