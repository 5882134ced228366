//! Numbers in blocks, by candle's quantizer.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Numbers that one thread quantizes at a time: whole blocks of every type.
const PIECE_NUMBERS: usize = 64 << 10;

/// Whether none of the numbers is infinite or NaN.
pub(super) fn are_finite(numbers: &[f32]) -> bool {
    numbers.par_iter().all(|number| number.is_finite())
}

/// Quantizes whole blocks, on all threads.
///
/// # Errors
/// When candle has no quantizer for the type.
pub(super) fn blocks(numbers: &[f32], kind: GgmlDType) -> Result<Vec<u8>> {
    let bytes = |numbers: usize| numbers / kind.block_size() * kind.type_size();
    let mut out = vec![0; bytes(numbers.len())];
    out.par_chunks_mut(bytes(PIECE_NUMBERS)).zip(numbers.par_chunks(PIECE_NUMBERS)).try_for_each(
        |(out, numbers)| -> Result<()> {
            let piece = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
            out.copy_from_slice(&QTensor::quantize(&piece, kind)?.data()?);
            Ok(())
        },
    )?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::blocks::BlockType;
    use crate::engine::noise::standard_normal;

    /// Pieces are joined in their order: the bytes are those of the numbers quantized at once.
    #[test]
    fn pieces_have_the_blocks_of_the_whole() {
        let numbers = standard_normal(5, 0, 2 * PIECE_NUMBERS + 512);
        for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4K] {
            let whole = Tensor::from_slice(&numbers[..], numbers.len(), &Device::Cpu).expect("a tensor");
            let whole = QTensor::quantize(&whole, kind).expect("quantized");
            assert!(blocks(&numbers, kind).expect("quantized") == *whole.data().expect("bytes"), "{kind:?}");
        }
    }

    /// Our own decoders read what candle's quantizer writes, within the distance that each type allows.
    #[test]
    fn decoded_blocks_are_close_to_the_numbers() {
        let mut numbers = standard_normal(6, 0, 64 * 256);
        // A block of zeros has no scale.
        numbers[512..768].fill(0.0);
        for (kind, block_type, share) in [
            (GgmlDType::Q8_0, BlockType::Q8_0, 1.0 / 254.0),
            // Four bits reach seven eighths of the largest magnitude on one side.
            (GgmlDType::Q4_0, BlockType::Q4_0, 1.0 / 8.0),
            (GgmlDType::Q4K, BlockType::Q4K, 0.25),
        ] {
            let bytes = blocks(&numbers, kind).expect("quantized");
            let mut decoded = vec![0.0; numbers.len()];
            block_type.decode(&bytes, &mut decoded);
            let size = block_type.numbers();
            for (block, (numbers, decoded)) in numbers.chunks(size).zip(decoded.chunks(size)).enumerate() {
                let largest = numbers.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
                let furthest = numbers.iter().zip(decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // The scale itself is rounded to f16.
                let limit = largest * (share + 1.0 / 2048.0);
                assert!(furthest <= limit, "{kind:?}, block {block}: {furthest} of {largest}");
            }
        }
    }
}
