//! Shapes and operands that several groups of operations share.

use candle_core::{Result, Tensor};

use super::operation::Numbers;
use crate::engine::ops::Segments;
use crate::engine::ops::attention::attention_by;
use crate::engine::ops::kernel::Kernel;

/// Lengths of the sequences: a block's tail, one token, several blocks.
const LENGTHS: [usize; 4] = [77, 1, 300, 128];
pub(super) const SEQUENCES: usize = LENGTHS.len();
pub(super) const ROWS: usize = 506;

/// As in FLUX.1-dev.
pub(super) const HEAD_WIDTH: usize = 128;
pub(super) const HEADS: usize = 3;
pub(super) const WIDTH: usize = HEADS * HEAD_WIDTH;

/// Tokens of an image of 1024×1024 pixels and its prompt.
const LONG_TOKENS: usize = 4608;

/// The sequences of a stream of [`ROWS`].
pub(super) fn segments() -> Segments {
    Segments::from_lengths(LENGTHS)
}

/// Queries, keys and values of one head and [`LONG_TOKENS`] tokens, of deviation 3: a few keys have most of the weight.
pub(super) fn long_sequence(numbers: &Numbers) -> Result<Vec<Tensor>> {
    let qkv = (numbers.random(59, &[LONG_TOKENS, 3 * HEAD_WIDTH])? * 3.0)?;
    Ok(vec![numbers.rounded(&qkv)?])
}

/// Attention of [`long_sequence`].
pub(super) fn attend_to_long_sequence(kernel: Kernel, x: &[Tensor]) -> Result<Tensor> {
    attention_by(kernel, &x[0], 1, &Segments::from_lengths([LONG_TOKENS]))
}

/// An image `[1, channels, height, width]` for a convolution and a residual for its output, whose sizes are no multiples of a
/// tile, and channels no multiple of a chunk.
pub(super) fn small_convolution(numbers: &Numbers) -> Result<Vec<Tensor>> {
    let (image, kernel) = (numbers.random(40, &[1, 72, 19, 33])?, numbers.weight(41, &[136, 72, 3, 3])?);
    Ok(vec![image, kernel, numbers.random(42, &[136])?, numbers.random(43, &[1, 136, 19, 33])?])
}

/// The same for a convolution after doubling.
pub(super) fn small_doubled(numbers: &Numbers) -> Result<Vec<Tensor>> {
    let (image, kernel) = (numbers.random(47, &[1, 48, 7, 18])?, numbers.weight(48, &[48, 48, 3, 3])?);
    Ok(vec![image, kernel, numbers.random(49, &[48])?])
}

/// [`small_convolution`] of a layer of the decoder.
pub(super) fn wide_convolution(numbers: &Numbers) -> Result<Vec<Tensor>> {
    let (image, kernel) = (numbers.random(60, &[1, 256, 40, 72])?, numbers.weight(61, &[128, 256, 3, 3])?);
    Ok(vec![image, kernel, numbers.random(62, &[128])?, numbers.random(63, &[1, 128, 40, 72])?])
}

/// [`small_doubled`] of a layer of the decoder.
pub(super) fn wide_doubled(numbers: &Numbers) -> Result<Vec<Tensor>> {
    let (image, kernel) = (numbers.random(64, &[1, 256, 20, 36])?, numbers.weight(65, &[256, 256, 3, 3])?);
    Ok(vec![image, kernel, numbers.random(66, &[256])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequences_are_all_rows() {
        assert_eq!((segments().rows(), segments().count()), (ROWS, SEQUENCES));
    }
}
