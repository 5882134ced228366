//! Floating-point types of 8 and 16 bits. Without branches, so that the compiler computes many at a time.

/// Bits of f32's mantissa.
const WIDE_MANTISSA: u32 = 23;

/// The exponent's bias in f32.
const WIDE_BIAS: u32 = 127;

/// The number with these bits in f16.
#[inline(always)]
pub(super) fn f16(bits: u16) -> f32 {
    const BIAS: u32 = 15;
    const MANTISSA: u32 = 10;
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let normal = (magnitude << (WIDE_MANTISSA - MANTISSA)) + ((WIDE_BIAS - BIAS) << WIDE_MANTISSA);
    // Below the smallest exponent: multiples of 2⁻²⁴.
    let small = (magnitude as f32 * (1.0 / (1 << 24) as f32)).to_bits();
    // Infinities, and NaN, which is made quiet.
    let quiet = u32::from(magnitude > 0x7c00) << (WIDE_MANTISSA - 1);
    let infinite = magnitude << (WIDE_MANTISSA - MANTISSA) | f32::INFINITY.to_bits() | quiet;
    let wide = if magnitude < 1 << MANTISSA { small } else { normal };
    let wide = if magnitude >= 0x7c00 { infinite } else { wide };
    f32::from_bits(sign | wide)
}

/// The number with these bits in bf16: the upper half of an f32.
#[inline(always)]
pub(super) fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The number with these bits in e4m3fn: bias 7, no infinities, one NaN of each sign.
#[inline(always)]
pub(super) fn e4m3(bits: u8) -> f32 {
    const BIAS: u32 = 7;
    const MANTISSA: u32 = 3;
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = u32::from(bits & 0x7f);
    let normal = (magnitude << (WIDE_MANTISSA - MANTISSA)) + ((WIDE_BIAS - BIAS) << WIDE_MANTISSA);
    // Below the smallest exponent: multiples of 2⁻⁹.
    let small = (magnitude as f32 * (1.0 / 512.0)).to_bits();
    let wide = if magnitude < 1 << MANTISSA { small } else { normal };
    let wide = if magnitude == 0x7f { f32::NAN.to_bits() } else { wide };
    f32::from_bits(sign | wide)
}

/// The number with these bits in e5m2: the upper half of an f16.
#[inline(always)]
pub(super) fn e5m2(bits: u8) -> f32 {
    f16(u16::from(bits) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_16_bits_is_converted_as_by_its_library() {
        for bits in 0..=u16::MAX {
            let same = |found: f32, expected: f32| {
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
            };
            assert!(same(f16(bits), half::f16::from_bits(bits).to_f32()), "f16 {bits:#06x}");
            assert!(same(bf16(bits), half::bf16::from_bits(bits).to_f32()), "bf16 {bits:#06x}");
        }
    }
}
