//! How each tensor is stored in a new file.
//!
//! As in the files that people have: the matrices of the blocks are quantized. Biases and norms, the embedders and the final
//! layer are not: they are small, and every token passes through them. GGUF files follow the newer ones of city96's tools,
//! with F32 for vectors and 16 bits for the other matrices.

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use crate::domain::conversion::WeightFormat;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// As numbers of a type.
    Plain(DType),
    /// As blocks of a GGML type.
    Blocks(GgmlDType),
    /// As e4m3 with one scale.
    E4m3,
}

/// How a tensor is stored, and whether that is for want of whole blocks in its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) stored: Stored,
    pub(super) is_uneven: bool,
}

/// How the names of the embedders and of the final layer begin.
const UNQUANTIZED: [&str; 6] = ["img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer."];

/// In the name of T5's table of distances, which no tool quantizes.
const T5_BIAS: &str = "relative_attention_bias";

/// T5's table of embeddings, which GGUF files quantize and fp8 files do not.
const T5_TABLE: &str = "shared.weight";

/// A tensor of at most so many numbers is F32 in GGUF files.
const SMALL_NUMBERS: usize = 1024;

impl Stored {
    /// Bytes of so many numbers.
    pub(super) fn bytes(self, numbers: usize) -> usize {
        match self {
            Self::Plain(dtype) => numbers * dtype.size_in_bytes(),
            Self::Blocks(kind) => numbers / kind.block_size() * kind.type_size(),
            Self::E4m3 => numbers,
        }
    }

    pub(super) fn is_quantized(self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// Chooses how a tensor is stored. `plain` is the type of its numbers in the checkpoint, if they are stored as they are.
pub(super) fn choose(format: WeightFormat, name: &str, shape: &[usize], plain: Option<DType>) -> Choice {
    let is_matrix = shape.len() == 2;
    let is_kept = UNQUANTIZED.iter().any(|beginning| name.starts_with(beginning)) || name.contains(T5_BIAS);
    // BF16 has the numbers of most checkpoints as they are; those of a file in F16 need all its bits.
    let narrow = Stored::Plain(if plain == Some(DType::F16) { DType::F16 } else { DType::BF16 });
    let stored = match (format, blocks(format)) {
        (_, Some(_)) if !is_matrix || shape.iter().product::<usize>() <= SMALL_NUMBERS => Stored::Plain(DType::F32),
        (_, Some(kind)) if !is_kept => {
            let is_uneven = shape.last().is_some_and(|row| !row.is_multiple_of(kind.block_size()));
            return Choice { stored: if is_uneven { narrow } else { Stored::Blocks(kind) }, is_uneven };
        }
        (WeightFormat::Fp8, _) if is_matrix && !is_kept && name != T5_TABLE => Stored::E4m3,
        (WeightFormat::Bf16, _) => Stored::Plain(DType::BF16),
        _ => narrow,
    };
    Choice { stored, is_uneven: false }
}

/// Whether the new file is a GGUF file.
pub(super) fn is_gguf(format: WeightFormat) -> bool {
    blocks(format).is_some()
}

/// The blocks of a GGUF file's matrices.
pub(super) fn blocks(format: WeightFormat) -> Option<GgmlDType> {
    match format {
        WeightFormat::GgufQ8_0 => Some(GgmlDType::Q8_0),
        WeightFormat::GgufQ4_0 => Some(GgmlDType::Q4_0),
        WeightFormat::GgufQ4K => Some(GgmlDType::Q4K),
        WeightFormat::Fp8 | WeightFormat::Bf16 => None,
    }
}

#[cfg(test)]
mod tests {
    use WeightFormat::{Bf16, Fp8, GgufQ4K, GgufQ8_0};

    use super::*;

    const BF16: Stored = Stored::Plain(DType::BF16);
    const F16: Stored = Stored::Plain(DType::F16);
    const F32: Stored = Stored::Plain(DType::F32);

    fn stored(format: WeightFormat, name: &str, shape: &[usize]) -> Stored {
        choose(format, name, shape, Some(DType::BF16)).stored
    }

    #[test]
    fn matrices_of_blocks_are_quantized_and_what_is_small_is_not() {
        let (q8, q4) = (Stored::Blocks(GgmlDType::Q8_0), Stored::Blocks(GgmlDType::Q4K));
        for (name, shape, expected) in [
            ("double_blocks.0.img_attn.qkv.weight", &[9216, 3072][..], [q8, q4, Stored::E4m3, BF16]),
            ("double_blocks.0.img_mod.lin.weight", &[18_432, 3072], [q8, q4, Stored::E4m3, BF16]),
            ("double_blocks.0.img_attn.qkv.bias", &[9216], [F32, F32, BF16, BF16]),
            ("single_blocks.0.norm.key_norm.scale", &[128], [F32, F32, BF16, BF16]),
            ("txt_in.weight", &[3072, 4096], [BF16; 4]),
            ("guidance_in.out_layer.weight", &[3072, 3072], [BF16; 4]),
            ("final_layer.adaLN_modulation.1.weight", &[6144, 3072], [BF16; 4]),
            ("shared.weight", &[32_128, 4096], [q8, q4, BF16, BF16]),
            ("encoder.block.3.layer.1.DenseReluDense.wo.weight", &[4096, 10_240], [q8, q4, Stored::E4m3, BF16]),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 64], [BF16; 4]),
            ("double_blocks.0.img_mlp.0.weight", &[32, 32], [F32, F32, Stored::E4m3, BF16]),
        ] {
            assert_eq!([GgufQ8_0, GgufQ4K, Fp8, Bf16].map(|format| stored(format, name, shape)), expected, "{name}");
        }
    }

    #[test]
    fn rows_without_whole_blocks_stay_and_are_counted() {
        let name = "double_blocks.0.img_mlp.2.weight";
        let choice = |format, width| choose(format, name, &[64, width], Some(DType::F32));
        assert_eq!(choice(GgufQ4K, 320), Choice { stored: BF16, is_uneven: true });
        assert_eq!(choice(GgufQ8_0, 320).stored, Stored::Blocks(GgmlDType::Q8_0));
        assert_eq!(choice(GgufQ8_0, 48), Choice { stored: BF16, is_uneven: true });
        assert_eq!(choice(Fp8, 37), Choice { stored: Stored::E4m3, is_uneven: false });
        let embedder = choose(GgufQ4K, "img_in.weight", &[3072, 64], Some(DType::BF16));
        assert!(!embedder.is_uneven, "it would not be quantized anyway");
    }

    #[test]
    fn numbers_in_f16_keep_their_bits() {
        let of = |format, plain| choose(format, "txt_in.weight", &[256, 256], plain).stored;
        assert_eq!([GgufQ8_0, Fp8, Bf16].map(|format| of(format, Some(DType::F16))), [F16, F16, BF16]);
        assert_eq!([None, Some(DType::F32)].map(|plain| of(GgufQ8_0, plain)), [BF16; 2]);
    }
}
