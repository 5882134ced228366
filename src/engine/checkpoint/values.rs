//! Conversion of numbers between widths, as bytes of files and of a device's memory.
//!
//! Gives the bits of candle's `to_dtype` on the CPU: to the nearest, ties to even.

use candle_core::DType;
use half::{bf16, f16};

/// Converts `bytes`, numbers of type `from`, to as many of type `to`. Both are BF16, F16 or F32, little-endian.
pub(super) fn convert(from: DType, bytes: &[u8], to: DType, out: &mut [u8]) {
    use DType::{BF16, F16, F32};
    match (from, to) {
        (BF16, F32) => each(bytes, out, |value| bf16::from_le_bytes(value).to_f32().to_le_bytes()),
        (F16, F32) => each(bytes, out, |value| f16::from_le_bytes(value).to_f32().to_le_bytes()),
        (F32, BF16) => each(bytes, out, |value| bf16::from_f32(f32::from_le_bytes(value)).to_le_bytes()),
        (F16, BF16) => each(bytes, out, |value| bf16::from_f32(f16::from_le_bytes(value).to_f32()).to_le_bytes()),
        (F32, F16) => each(bytes, out, |value| f16::from_f32(f32::from_le_bytes(value)).to_le_bytes()),
        (BF16, F16) => each(bytes, out, |value| f16::from_f32(bf16::from_le_bytes(value).to_f32()).to_le_bytes()),
        _ => out.copy_from_slice(bytes),
    }
}

fn each<const FROM: usize, const TO: usize>(bytes: &[u8], out: &mut [u8], one: impl Fn([u8; FROM]) -> [u8; TO]) {
    let (values, places) = (bytes.as_chunks::<FROM>().0, out.as_chunks_mut::<TO>().0);
    assert_eq!(values.len(), places.len(), "one output for each number");
    for (value, place) in values.iter().zip(places) {
        *place = one(*value);
    }
}

/// The bytes of numbers, writable.
pub(super) fn bytes_of<T: Plain>(values: &mut [T]) -> &mut [u8] {
    let length = size_of_val(values);
    // SAFETY: a `Plain` number has no padding and every bit pattern is valid; the slice covers exactly these numbers and
    // borrows them mutably. On a little-endian machine, the only kind that is supported, their bytes in memory are those of
    // the file.
    #[expect(unsafe_code, reason = "files are read into the memory of the numbers, without a copy")]
    unsafe {
        std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), length)
    }
}

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian in files and are read without a conversion");

/// Numbers without padding, for which every bit pattern is valid.
pub(super) trait Plain: sealed::Sealed {}

impl Plain for f32 {}
impl Plain for u16 {}
impl Plain for u8 {}

mod sealed {
    pub(in super::super) trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u16 {}
    impl Sealed for u8 {}
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

    /// Every pattern of 16 bits, including infinities and NaN. As f32, with low bits that round either way.
    fn all_of(dtype: DType) -> Vec<u8> {
        let bits = 0..=u16::MAX;
        if dtype == DType::F32 {
            let wide = |bits: u16| [0_u32, 1, 0x7fff, 0x8000, 0x8001].map(|low| u32::from(bits) << 16 | low);
            bits.flat_map(wide).flat_map(u32::to_le_bytes).collect()
        } else {
            bits.flat_map(u16::to_le_bytes).collect()
        }
    }

    fn bytes_in(tensor: &Tensor) -> Vec<u8> {
        let flat = tensor.flatten_all().expect("flat");
        match tensor.dtype() {
            DType::BF16 => flat.to_vec1::<bf16>().expect("numbers").into_iter().flat_map(bf16::to_le_bytes).collect(),
            DType::F16 => flat.to_vec1::<f16>().expect("numbers").into_iter().flat_map(f16::to_le_bytes).collect(),
            _ => flat.to_vec1::<f32>().expect("numbers").into_iter().flat_map(f32::to_le_bytes).collect(),
        }
    }

    #[test]
    fn every_number_is_converted_as_by_candle() {
        for from in DTYPES {
            let bytes = all_of(from);
            let count = bytes.len() / from.size_in_bytes();
            let tensor = Tensor::from_raw_buffer(&bytes, from, &[count], &Device::Cpu).expect("a tensor");
            for to in DTYPES {
                let mut out = vec![0; count * to.size_in_bytes()];
                convert(from, &bytes, to, &mut out);
                assert!(out == bytes_in(&tensor.to_dtype(to).expect("converted")), "{from:?} to {to:?}");
            }
        }
    }
}
