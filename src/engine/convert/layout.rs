//! Where each tensor is in a new file, and the header that says so.

mod gguf;
mod safetensors;

use candle_core::DType;

use super::plan::{self, Stored};
use crate::domain::conversion::{ConvertedComponent, WeightFormat};

/// A tensor of a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    name: String,
    shape: Vec<usize>,
    stored: Stored,
}

/// A new file without its tensors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The file's first bytes.
    pub(super) header: Vec<u8>,
    /// Where each row's bytes begin in the file, in the order of the rows.
    pub(super) places: Vec<u64>,
    /// The file's size.
    pub(super) bytes: u64,
}

/// The rows of a tensor: itself, and for e4m3 its scale, and what says that it has one, in so many bytes.
pub(super) fn rows(name: String, shape: &[usize], stored: Stored, marker_bytes: usize) -> Vec<Row> {
    let companion = |name: &str, ending: &str, shape: Vec<usize>, dtype| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        Row { name: format!("{module}.{ending}"), shape, stored: Stored::Plain(dtype) }
    };
    let companions = match stored {
        Stored::E4m3 => vec![
            companion(&name, "weight_scale", Vec::new(), DType::F32),
            companion(&name, "comfy_quant", vec![marker_bytes], DType::U8),
        ],
        Stored::Plain(_) | Stored::Blocks(_) => Vec::new(),
    };
    let row = Row { name, shape: shape.to_vec(), stored };
    std::iter::once(row).chain(companions).collect()
}

impl Row {
    fn bytes(&self) -> u64 {
        self.stored.bytes(self.shape.iter().product()) as u64
    }
}

impl Layout {
    /// Places the tensors one after the other.
    pub(super) fn new(component: ConvertedComponent, format: WeightFormat, rows: &[Row]) -> Self {
        match plan::blocks(format) {
            Some(kind) => gguf::layout(component, kind, rows),
            None => self::safetensors::layout(rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::flux_dev_tensors;

    fn size(format: WeightFormat) -> u64 {
        let tensors = flux_dev_tensors().into_iter();
        let rows: Vec<Row> = tensors
            .flat_map(|(name, shape)| {
                let stored = plan::choose(format, &name, &shape, Some(DType::BF16)).stored;
                rows(name, &shape, stored, 27)
            })
            .collect();
        Layout::new(ConvertedComponent::Transformer, format, &rows).bytes
    }

    /// The file that the newer of city96's tools make of the same dimensions: QuantStack's FLUX.1-Krea-dev in Q8_0.
    #[test]
    fn a_gguf_of_the_real_dimensions_has_the_published_size() {
        assert_eq!(size(WeightFormat::GgufQ8_0), 12_714_452_256);
        // Both have 18 bytes for 32 numbers.
        assert_eq!(size(WeightFormat::GgufQ4_0), size(WeightFormat::GgufQ4K));
    }

    #[test]
    fn a_safetensors_file_has_two_bytes_a_number_or_one() {
        let (bf16, fp8) = (size(WeightFormat::Bf16), size(WeightFormat::Fp8));
        let numbers = 11_901_408_320;
        assert!((1..300_000).contains(&(bf16 - 2 * numbers)), "{bf16}");
        // The embedders, the final layer, biases and norms keep two.
        let quantized = 11_834_228_736;
        assert!((1..300_000).contains(&(fp8 + quantized - 2 * numbers)), "{fp8}");
    }
}
