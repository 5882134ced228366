//! bitsandbytes' types: four bits with a table of 16 levels (NF4, FP4), and int8 with a scale for each row.
//!
//! Blocks run over the flattened matrix, as in the published format; rows need not be multiples of a block.

/// Decodes numbers of four bits from number `first` on, which is even. The first of two is in the high half of its byte.
///
/// `block` numbers have one scale; `scales` begins with that of the first one's block.
pub(crate) fn four_bits(
    codes: &[u8],
    levels: &[f32; 16],
    (first, block): (usize, usize),
    scales: &[f32],
    out: &mut [f32],
) {
    let (mut index, mut left) = (0, out);
    for scale in scales {
        let levels = levels.map(|level| level * scale);
        let count = (block - (first + index) % block).min(left.len());
        let (now, later) = left.split_at_mut(count);
        for place in now {
            let byte = codes[index / 2];
            let code = if index % 2 == 0 { byte >> 4 } else { byte & 0xf };
            *place = levels[usize::from(code)];
            index += 1;
        }
        left = later;
    }
    assert!(left.is_empty(), "a scale for each block");
}

/// The scale of a block, from a scale that is quantized, too.
pub(crate) fn nested_scale(code: u8, levels: &[f32; 256], scale: f32, offset: f32) -> f32 {
    levels[usize::from(code)] * scale + offset
}

/// Decodes numbers of eight bits of a row with this scale: as bitsandbytes computes, from left to right in f32.
pub(crate) fn int8(codes: &[u8], scale: f32, out: &mut [f32]) {
    /// 1/127, rounded to f32.
    const STEP: f32 = 1.0 / 127.0;
    for (place, code) in out.iter_mut().zip(codes) {
        *place = f32::from(code.cast_signed()) * scale * STEP;
    }
}
