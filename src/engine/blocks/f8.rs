//! The two types of eight bits.

use half::f16;

/// Bit patterns of a byte without its sign.
const MAGNITUDE: u8 = 0x7f;

/// The number with these bits in e4m3fn: bias 7, no infinities, one NaN of each sign.
pub(super) fn e4m3(bits: u8) -> f32 {
    const BIAS: u32 = 7;
    const MANTISSA_BITS: u32 = 3;
    /// The exponent's bias in f32.
    const WIDE_BIAS: u32 = 127;
    let sign = u32::from(bits & !MAGNITUDE) << 24;
    let magnitude = u32::from(bits & MAGNITUDE);
    if magnitude == u32::from(MAGNITUDE) {
        return f32::from_bits(sign | f32::NAN.to_bits());
    }
    if magnitude >> MANTISSA_BITS == 0 {
        // Below the smallest exponent: multiples of 2⁻⁹.
        let value = magnitude as f32 / 512.0;
        return f32::from_bits(sign | value.to_bits());
    }
    let wide = (magnitude << (23 - MANTISSA_BITS)) + ((WIDE_BIAS - BIAS) << 23);
    f32::from_bits(sign | wide)
}

/// The number with these bits in e5m2: the upper half of an f16.
pub(super) fn e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}
