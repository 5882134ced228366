//! GGML's types of four bits with a table of levels.

use super::{SMALL_BLOCK, SUPER_BLOCK, half_at};

const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Bytes with the codes of a small block.
const NIBBLES: usize = SMALL_BLOCK / 2;

/// IQ4_NL: one scale for 32 numbers.
#[inline(always)]
pub(super) fn nl(block: &[u8; 18], out: &mut [f32; SMALL_BLOCK]) {
    fill(half_at(block), &block[2..], out);
}

/// IQ4_XS: eight times 32 numbers, with a scale of six bits each.
#[inline(always)]
pub(super) fn xs(block: &[u8; 136], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, high) = (half_at(block), u16::from_le_bytes([block[2], block[3]]));
    let (low, codes) = (&block[4..8], &block[8..]);
    for (sub, places) in out.chunks_exact_mut(SMALL_BLOCK).enumerate() {
        let low = low[sub / 2] >> (sub % 2 * 4) & 0xf;
        let high = (high >> (2 * sub) & 3) as u8;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        fill(scale, &codes[sub * NIBBLES..(sub + 1) * NIBBLES], places);
    }
}

/// The low four bits of the bytes are the first half, the high ones the second.
#[inline(always)]
fn fill(scale: f32, codes: &[u8], out: &mut [f32]) {
    let level = |code: u8| scale * f32::from(LEVELS[usize::from(code & 0xf)]);
    let (first, second) = out.split_at_mut(NIBBLES);
    for ((byte, first), second) in codes.iter().zip(first).zip(second) {
        (*first, *second) = (level(*byte), level(byte >> 4));
    }
}
