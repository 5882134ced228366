//! The number types of quantized weight files: bytes to f32, with the bits of each format's reference implementation.
//!
//! Must not know files, devices or models.

#![expect(clippy::inline_always, reason = "only what is inlined into `vectorized` is compiled for wide vectors")]

pub(crate) mod bitsandbytes;
mod floats;
mod iq4;
mod k_quants;
mod legacy;

use super::ops::vectorized;

/// A type whose numbers are stored in blocks, each of which is decoded by itself. The GGML types, and the two of eight bits
/// that safetensors has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockType {
    F32,
    F16,
    Bf16,
    /// fp8: 4 bits of exponent, 3 of mantissa, no infinities.
    F8E4M3,
    /// fp8: 5 bits of exponent, 2 of mantissa.
    F8E5M2,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// How the codes of a matrix become numbers.
#[derive(Debug, Clone)]
pub(crate) enum Coding<'a> {
    /// Blocks of a type, each number times one scale.
    Blocks(BlockType, f32),
    /// bitsandbytes' types of four bits: levels from a table, times the scale of a block of the flattened matrix.
    FourBits { levels: &'a [f32; 16], block: usize, scales: Vec<f32> },
    /// bitsandbytes' int8: a scale for each row.
    Int8 { scales: &'a [f32] },
}

impl Coding<'_> {
    /// Bytes of the codes of so many numbers.
    pub(crate) fn bytes(&self, count: usize) -> usize {
        match self {
            Self::Blocks(kind, _) => count.div_ceil(kind.numbers()) * kind.bytes(),
            Self::FourBits { .. } => count.div_ceil(2),
            Self::Int8 { .. } => count,
        }
    }
}

/// Numbers in a block of the K-quants, and of IQ4_XS.
const SUPER_BLOCK: usize = 256;

/// Numbers in a block of the older types, and of IQ4_NL.
const SMALL_BLOCK: usize = 32;

vectorized! {
    fn decode<'a>(blocks: BlockType, bytes: &'a [u8], out: &'a mut [f32]) {
        blocks.decode_inlined(bytes, out);
    }
}

impl BlockType {
    /// Numbers in a block.
    pub(crate) fn numbers(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => SMALL_BLOCK,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Decodes whole blocks. `out` has one place for each number.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        decode(self, bytes, out);
    }

    #[inline(always)]
    fn decode_inlined(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => each::<4, 1>(bytes, out, |value, out| out[0] = f32::from_le_bytes(*value)),
            Self::F16 => each::<2, 1>(bytes, out, |value, out| out[0] = floats::f16(u16::from_le_bytes(*value))),
            Self::Bf16 => each::<2, 1>(bytes, out, |value, out| out[0] = floats::bf16(u16::from_le_bytes(*value))),
            Self::F8E4M3 => each::<1, 1>(bytes, out, |value, out| out[0] = floats::e4m3(value[0])),
            Self::F8E5M2 => each::<1, 1>(bytes, out, |value, out| out[0] = floats::e5m2(value[0])),
            Self::Q4_0 => each(bytes, out, legacy::q4_0),
            Self::Q4_1 => each(bytes, out, legacy::q4_1),
            Self::Q5_0 => each(bytes, out, legacy::q5_0),
            Self::Q5_1 => each(bytes, out, legacy::q5_1),
            Self::Q8_0 => each(bytes, out, legacy::q8_0),
            Self::Q2K => each(bytes, out, k_quants::q2),
            Self::Q3K => each(bytes, out, k_quants::q3),
            Self::Q4K => each(bytes, out, k_quants::q4),
            Self::Q5K => each(bytes, out, k_quants::q5),
            Self::Q6K => each(bytes, out, k_quants::q6),
            Self::Iq4Nl => each(bytes, out, iq4::nl),
            Self::Iq4Xs => each(bytes, out, iq4::xs),
        }
    }
}

/// Decodes block by block.
#[inline(always)]
fn each<const BYTES: usize, const NUMBERS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (places, places_left) = out.as_chunks_mut::<NUMBERS>();
    assert!(
        rest.is_empty() && places_left.is_empty() && blocks.len() == places.len(),
        "whole blocks, and their places"
    );
    for (block, place) in blocks.iter().zip(places) {
        decode(block, place);
    }
}

/// The 16-bit number at the beginning of bytes.
#[inline(always)]
fn half_at(bytes: &[u8]) -> f32 {
    floats::f16(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests;
