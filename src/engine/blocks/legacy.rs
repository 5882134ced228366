//! GGML's older types: blocks of 32 numbers with one scale, and a minimum in the types that end in `_1`.
//!
//! As `gguf/quants.py` computes: the first half of a block has the low four bits of the bytes, the second the high ones.

use super::{SMALL_BLOCK, half_at};

/// Bytes with four bits of each number.
const NIBBLES: usize = SMALL_BLOCK / 2;

type Numbers = [f32; SMALL_BLOCK];

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut Numbers) {
    let scale = half_at(block);
    fill(out, &block[2..], |_, low| scale * (f32::from(low) - 8.0));
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut Numbers) {
    let (scale, minimum) = (half_at(block), half_at(&block[2..]));
    fill(out, &block[4..], |_, low| scale * f32::from(low) + minimum);
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut Numbers) {
    let (scale, high) = (half_at(block), high_bits(&block[2..]));
    fill(out, &block[6..], |index, low| scale * (f32::from(low | fifth(high, index)) - 16.0));
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut Numbers) {
    let (scale, minimum, high) = (half_at(block), half_at(&block[2..]), high_bits(&block[4..]));
    fill(out, &block[8..], |index, low| scale * f32::from(low | fifth(high, index)) + minimum);
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut Numbers) {
    let scale = half_at(block);
    for (place, code) in out.iter_mut().zip(&block[2..]) {
        *place = scale * f32::from(code.cast_signed());
    }
}

#[inline(always)]
fn fill(out: &mut Numbers, nibbles: &[u8], value: impl Fn(usize, u8) -> f32) {
    let (first, second) = out.split_at_mut(NIBBLES);
    for (index, ((byte, first), second)) in nibbles.iter().zip(first).zip(second).enumerate() {
        *first = value(index, byte & 0xf);
        *second = value(NIBBLES + index, byte >> 4);
    }
}

#[inline(always)]
fn high_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The fifth bit of a number, in its place.
#[inline(always)]
fn fifth(high: u32, index: usize) -> u8 {
    ((high >> index & 1) as u8) << 4
}
