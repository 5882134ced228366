//! The number format e4m3: a sign, four bits of exponent, three of mantissa. There is no infinity, one magnitude is NaN, and
//! the largest number is 448 (OCP 8-bit floating point, E4M3).

/// The largest number.
pub(super) const LARGEST: f32 = 448.0;

/// The code of the largest number.
const LARGEST_CODE: u32 = 0x7e;

/// The code of NaN; its sign is ignored.
const NOT_A_NUMBER: u8 = 0x7f;

/// 2⁻⁶, the smallest normal number. Below, codes count steps of 2⁻⁹.
const SMALLEST_NORMAL: f32 = 0.015_625;

/// The nearest code, ties to even. Larger numbers than 448 and infinity become 448, as with PTX's
/// `cvt.rn.satfinite.e4m3x2.f32`.
#[inline(always)]
pub(super) fn code_of(value: f32) -> u8 {
    // Adding this leaves steps of 2⁻⁹.
    const ROUNDER: f32 = 16_384.0;
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return NOT_A_NUMBER;
    }
    if magnitude < SMALLEST_NORMAL {
        return sign | ((magnitude + ROUNDER).to_bits() - ROUNDER.to_bits()) as u8;
    }
    // Twenty bits are rounded off, and the exponent's bias is 7 instead of 127.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)).min(LARGEST_CODE) as u8
}

/// The value of a code.
const fn value_of(code: u8) -> f32 {
    let magnitude = code & 0x7f;
    let (exponent, mantissa) = ((magnitude >> 3) as u32, (magnitude & 7) as u32);
    let value = match magnitude {
        NOT_A_NUMBER => f32::NAN,
        0..=7 => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if code & 0x80 == 0 { value } else { -value }
}

/// The value of each code.
pub(super) static VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = value_of(code as u8);
        code += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// The nearest code, in the plainest way.
    fn nearest(value: f32) -> u8 {
        if value.is_nan() {
            return NOT_A_NUMBER;
        }
        let distance = |code: u8| (f64::from(value.abs()) - f64::from(VALUES[usize::from(code)])).abs();
        let nearer = |best: u8, code: u8| {
            let is_nearer =
                distance(code) < distance(best) || distance(code) == distance(best) && code.is_multiple_of(2);
            if is_nearer { code } else { best }
        };
        let best = if value.is_infinite() { LARGEST_CODE as u8 } else { (0..NOT_A_NUMBER).fold(0, nearer) };
        best | if value.is_sign_negative() { 0x80 } else { 0 }
    }

    /// Every code, the ties between them and the neighbors of both, with both signs.
    fn edges() -> Vec<f32> {
        let mut all = vec![464.0, 1e30, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::INFINITY];
        for code in 0..LARGEST_CODE as usize {
            let middle = f32::midpoint(VALUES[code], VALUES[code + 1]);
            all.extend([VALUES[code], middle].iter().flat_map(|&x| [x, x.next_up(), x.next_down()]));
        }
        all.extend(all.clone().iter().map(|x| -x));
        all
    }

    #[test]
    fn every_code_and_every_tie_is_rounded_to_the_nearest() {
        for code in (0..=LARGEST_CODE as u8).chain(0x80..=0xfe) {
            assert_eq!(code_of(VALUES[usize::from(code)]), code);
        }
        for value in edges() {
            assert_eq!(code_of(value), nearest(value), "{value:e}");
        }
        assert_eq!(VALUES[LARGEST_CODE as usize], LARGEST);
        assert_eq!((code_of(f32::NAN), code_of(-f32::NAN)), (NOT_A_NUMBER, NOT_A_NUMBER));
        assert!(VALUES[0x7f].is_nan() && VALUES[0xff].is_nan());
    }

    #[test]
    fn every_number_of_sixteen_bits_is_rounded_to_the_nearest() {
        for bits in 0..=u16::MAX {
            let value = f32::from_bits(u32::from(bits) << 16);
            assert_eq!(code_of(value), nearest(value), "{value:e}");
        }
    }

    /// candle's implementation of the format reads the same values.
    #[test]
    fn candle_reads_the_same_numbers() {
        let finite: Vec<f32> = VALUES.into_iter().filter(|value| value.is_finite()).collect();
        let tensor = Tensor::new(finite.as_slice(), &Device::Cpu).expect("tensor");
        let there_and_back = tensor.to_dtype(DType::F8E4M3).and_then(|x| x.to_dtype(DType::F32)?.to_vec1::<f32>());
        assert_eq!(there_and_back.expect("converts"), finite);
    }
}
