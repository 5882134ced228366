//! GGML's K-quants: blocks of 256 numbers, in sub-blocks with a scale each, which are quantized, too.
//!
//! As `gguf/quants.py` computes in f32: the block's scale times the sub-block's first, then times the code, then minus the
//! minimum.

use super::{SUPER_BLOCK, half_at};

/// Numbers in a sub-block of Q2_K, Q3_K and Q6_K.
const NARROW: usize = 16;

/// Numbers in a sub-block of Q4_K and Q5_K.
const WIDE: usize = 32;

type Numbers = [f32; SUPER_BLOCK];

#[inline(always)]
pub(super) fn q2(block: &[u8; 84], out: &mut Numbers) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half_at(&block[80..]), half_at(&block[82..]));
    for (sub, places) in out.as_chunks_mut::<NARROW>().0.iter_mut().enumerate() {
        let (scale, minimum) = (scale * f32::from(scales[sub] & 0xf), minimum * f32::from(scales[sub] >> 4));
        let (codes, shift) = two_bits(codes, sub);
        for (place, code) in places.iter_mut().zip(codes) {
            *place = scale * f32::from(code >> shift & 3) - minimum;
        }
    }
}

#[inline(always)]
pub(super) fn q3(block: &[u8; 110], out: &mut Numbers) {
    let (mask, codes, packed, scale) = (&block[..32], &block[32..96], &block[96..108], half_at(&block[108..]));
    for (sub, places) in out.as_chunks_mut::<NARROW>().0.iter_mut().enumerate() {
        let low = packed[sub % 8] >> (sub / 8 * 4) & 0xf;
        let high = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        let (codes, shift) = two_bits(codes, sub);
        let (mask, bit) = (&mask[sub % 2 * NARROW..][..NARROW], sub / 2);
        for (place, (code, mask)) in places.iter_mut().zip(codes.iter().zip(mask)) {
            // A set bit of the mask means that nothing is subtracted.
            let high = (mask >> bit & 1 ^ 1) << 2;
            *place = scale * (f32::from(code >> shift & 3) - f32::from(high));
        }
    }
}

#[inline(always)]
pub(super) fn q4(block: &[u8; 144], out: &mut Numbers) {
    let codes = &block[16..];
    with_minimums(&block[..16], out, |sub, places, linear| {
        let (codes, shift) = four_bits(codes, sub);
        for (place, code) in places.iter_mut().zip(codes) {
            *place = linear.value(code >> shift & 0xf);
        }
    });
}

#[inline(always)]
pub(super) fn q5(block: &[u8; 176], out: &mut Numbers) {
    let (high, codes) = (&block[16..48], &block[48..]);
    with_minimums(&block[..16], out, |sub, places, linear| {
        let (codes, shift) = four_bits(codes, sub);
        for (place, (code, high)) in places.iter_mut().zip(codes.iter().zip(high)) {
            *place = linear.value(code >> shift & 0xf | (high >> sub & 1) << 4);
        }
    });
}

#[inline(always)]
pub(super) fn q6(block: &[u8; 210], out: &mut Numbers) {
    let (low, high, scales, scale) = (&block[..128], &block[128..192], &block[192..208], half_at(&block[208..]));
    for (sub, places) in out.as_chunks_mut::<NARROW>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(scales[sub].cast_signed());
        // Each 64 bytes have the low halves of 64 numbers, then of the next 64 the high ones.
        let (low, half) = (&low[sub / 8 * 64 + sub % 4 * NARROW..][..NARROW], sub / 4 % 2 * 4);
        let (high, shift) = two_bits(high, sub);
        for (place, (low, high)) in places.iter_mut().zip(low.iter().zip(high)) {
            let code = low >> half & 0xf | (high >> shift & 3) << 4;
            *place = scale * (f32::from(code) - 32.0);
        }
    }
}

/// Q4_K and Q5_K: the scales and minimums of six bits in 12 bytes behind the two halves. `fill` is called for each sub-block,
/// with what turns a code into a number.
#[inline(always)]
fn with_minimums(head: &[u8], out: &mut Numbers, fill: impl Fn(usize, &mut [f32; WIDE], Linear)) {
    let (scale, minimum, packed) = (half_at(head), half_at(&head[2..]), &head[4..16]);
    for (sub, places) in out.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
        let (of_scale, of_minimum) = if sub < 4 {
            (packed[sub] & 0x3f, packed[4 + sub] & 0x3f)
        } else {
            let (scales, minimums, both) = (packed[sub - 4], packed[sub], packed[4 + sub]);
            (both & 0xf | scales >> 2 & 0x30, both >> 4 | minimums >> 2 & 0x30)
        };
        fill(sub, places, Linear { scale: scale * f32::from(of_scale), minimum: minimum * f32::from(of_minimum) });
    }
}

/// The scale and the minimum of a sub-block.
#[derive(Clone, Copy)]
struct Linear {
    scale: f32,
    minimum: f32,
}

impl Linear {
    #[inline(always)]
    fn value(self, code: u8) -> f32 {
        self.scale * f32::from(code) - self.minimum
    }
}

/// The bytes with two bits of each number of a narrow sub-block, and how far to shift them: each 32 bytes have those of 128
/// numbers, of the first 32 in the lowest bits.
#[inline(always)]
fn two_bits(bytes: &[u8], sub: usize) -> (&[u8], usize) {
    (&bytes[sub / 8 * 32 + sub % 2 * NARROW..][..NARROW], sub / 2 % 4 * 2)
}

/// The bytes with four bits of each number of a wide sub-block, and how far to shift them: each 32 bytes have those of two
/// sub-blocks.
#[inline(always)]
fn four_bits(bytes: &[u8], sub: usize) -> (&[u8], usize) {
    (&bytes[sub / 2 * WIDE..][..WIDE], sub % 2 * 4)
}
