//! Attention inside each sequence of a packed stream. Never holds more than a few rows of scores.

mod kernel;
mod lanes;
mod packed;
mod rounded;

use candle_core::{Result, Tensor};

use super::Segments;

pub(crate) use kernel::CHOICE as KERNELS;
pub(crate) use packed::{attention_by, biased_attention, rounded_attention};

/// `softmax(q kᵀ / sqrt(head width)) v` for every head, inside each sequence.
///
/// `qkv [rows, 3 × heads × head width]` -> `[rows, heads × head width]`, dtype of `qkv`. Scores and their softmax are
/// f32. A sequence's bits depend on that sequence alone.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn attention(qkv: &Tensor, heads: usize, segments: &Segments) -> Result<Tensor> {
    attention_by(KERNELS.chosen(qkv.device()), qkv, heads, segments)
}

/// [`attention`] into the columns of a wider matrix from `start` on; the other columns are unchanged.
///
/// `wide [rows, at least start + heads × head width]`, contiguous; `qkv` is no part of it.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn attention_into(
    wide: &Tensor,
    start: usize,
    qkv: &Tensor,
    heads: usize,
    segments: &Segments,
) -> Result<()> {
    let target = wide.narrow(1, start, qkv.dim(1)? / 3)?;
    if packed::attention_into_by(KERNELS.chosen(qkv.device()), &target, qkv, heads, segments)? {
        return Ok(());
    }
    wide.slice_set(&attention(qkv, heads, segments)?, 1, start)
}

#[cfg(test)]
mod tests {
    use super::packed::{attention_composed, biased_attention_composed};
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_fused_op_equals_the_composed_one() {
        for (heads, head_width) in [(4, 16), (2, 128), (1, 64)] {
            let segments = Segments::from_lengths([70, 1, 200, 64]);
            let qkv = Tensor::randn(0.0_f32, 1.0, (335, 3 * heads * head_width), &Device::Cpu).expect("randn");
            let fused = attention(&qkv, heads, &segments).expect("fused");
            let composed = attention_composed(&qkv, heads, &segments).expect("composed");
            let largest: f32 = (fused - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-5, "{largest:e}");
        }
    }

    #[test]
    fn with_a_bias_the_fused_op_equals_the_composed_one() {
        for (heads, head_width, tokens) in [(4, 16, 70), (2, 64, 300), (1, 32, 1)] {
            let random = |rows, columns| Tensor::randn(0.0_f32, 0.5, (rows, columns), &Device::Cpu).expect("randn");
            let (qkv, bias) = (random(tokens, 3 * heads * head_width), random(heads, 2 * tokens));
            let fused = biased_attention(&qkv, heads, &bias).expect("fused");
            let composed = biased_attention_composed(&qkv, heads, &bias).expect("composed");
            let largest: f32 = (fused - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-5, "{largest:e}");
            assert!(biased_attention(&qkv, heads, &random(heads, 2 * tokens - 1)).is_err());
        }
    }

    #[test]
    fn a_sequence_has_the_same_bits_alone_and_batched() {
        let lengths = [33, 80, 5, 130];
        let qkv = Tensor::randn(0.0_f32, 1.0, (248, 3 * 64), &Device::Cpu).expect("randn");
        let segments = Segments::from_lengths(lengths);
        for attention in [attention, rounded_attention] {
            let batched = attention(&qkv, 4, &segments).expect("batched");
            for range in segments.ranges() {
                let own = qkv.narrow(0, range.start, range.len()).expect("narrow");
                let alone = attention(&own, 4, &Segments::from_lengths([range.len()])).expect("alone");
                let found = batched.narrow(0, range.start, range.len()).expect("narrow");
                assert_eq!(alone.to_vec2::<f32>().expect("values"), found.to_vec2::<f32>().expect("values"));
            }
        }
    }
}
