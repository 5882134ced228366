//! Weights as their file stores them: GGML blocks, fp8, NF4, bf16 on the CPU. On the CPU they are expanded tile by tile inside the
//! product, with the bits of the expanded matrix's product; on CUDA a few layers at a time, before the product.

use std::ops::Range;

use candle_core::{Device, Tensor, bail};

use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::{EXPANDED_BYTES_MAX, StoredMatrix};
use crate::engine::ops::expand::{PackedRows, expanded};
use crate::engine::ops::expanded_linear::expanded_linear;
use crate::engine::ops::gemm::expanded::ExpandRows;
use crate::engine::ops::linear::{linear, matrix_product};
use crate::engine::ops::matrix_product::MatrixProduct;

/// Two settings that exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`--weights as-stored` and `--precision {0}` exclude each other for this file: the precision keeps weights that are stored in \
     e4m3 with one scale for each matrix, and quantizes others after expanding them; leave one of the two out"
)]
pub struct AsStoredError(Precision);

/// Checks whether weights can be kept as they are stored in a precision. `are_all_e4m3`: those that the precision is for are in
/// e4m3, with one scale for each matrix.
///
/// # Errors
/// When they cannot.
pub(crate) fn check_kept(
    weights: WeightStorage,
    precision: Precision,
    are_all_e4m3: bool,
) -> Result<(), AsStoredError> {
    match (weights, precision) {
        (WeightStorage::AsStored, Precision::Fp8) if !are_all_e4m3 => Err(AsStoredError(precision)),
        _ => Ok(()),
    }
}

/// Whether weights that are stored in e4m3 are multiplied as they are, instead of being expanded and quantized again.
pub(crate) fn is_e4m3_kept(weights: WeightStorage, precision: Precision) -> bool {
    precision == Precision::Fp8 && weights != WeightStorage::Expanded
}

/// Says so, where so many of all layers that the precision is for are stored in e4m3. `None` where none is kept.
pub(crate) fn words_for_e4m3(weights: WeightStorage, precision: Precision, [kept, all]: [usize; 2]) -> Option<String> {
    if kept == 0 || !is_e4m3_kept(weights, precision) {
        return None;
    }
    Some(if kept == all {
        "fp8, weights as in the file".to_owned()
    } else {
        format!("fp8, weights of {kept} of {all} layers as in the file")
    })
}

/// A weight matrix `[outputs, inputs]` as it is stored.
pub(crate) enum AsStored {
    Host(StoredMatrix),
    /// On CUDA, in parts of one coding each.
    Device(Vec<PackedRows>),
}

impl ExpandRows for StoredMatrix {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn columns(&self) -> usize {
        self.columns()
    }

    fn expand(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> candle_core::Result<()> {
        self.expand(row, columns, out)
    }

    fn bf16_row(&self, row: usize) -> Option<&[u8]> {
        self.bf16_row(row)
    }
}

impl AsStored {
    /// Moves a matrix to a device.
    ///
    /// # Errors
    /// When the device is out of memory, or does not expand such a matrix.
    pub(crate) fn on(device: &Device, matrix: StoredMatrix) -> candle_core::Result<Self> {
        if device.is_cpu() { Ok(Self::Host(matrix)) } else { Self::packed(device, &matrix) }
    }

    fn packed(device: &Device, matrix: &StoredMatrix) -> candle_core::Result<Self> {
        let columns = matrix.columns();
        let parts = matrix.parts()?;
        let parts =
            parts.into_iter().map(|part| PackedRows::new(part.codes, [part.rows, columns], part.coding, device));
        parts.collect::<candle_core::Result<_>>().map(Self::Device)
    }

    /// `[rows, inputs]` -> `[rows, outputs]`, with the bias, or for an operation that adds the bias itself.
    pub(super) fn product<'a>(&self, x: &Tensor, bias: Option<&'a Tensor>) -> candle_core::Result<MatrixProduct<'a>> {
        match self {
            Self::Host(matrix) => expanded_linear(x, matrix, bias).map(MatrixProduct::from),
            Self::Device(parts) => product_in_groups(x, parts, bias, EXPANDED_BYTES_MAX),
        }
    }

    /// Some rows of a matrix in the host's memory, in f32: `[indices, inputs]`.
    ///
    /// # Errors
    /// When there is no such row, or it is elsewhere.
    pub(crate) fn rows_at(&self, indices: &[u32]) -> candle_core::Result<Tensor> {
        let Self::Host(matrix) = self else { bail!("rows of a matrix that is not in the host's memory") };
        let width = matrix.columns();
        let mut values = vec![0.0; indices.len() * width];
        for (index, out) in indices.iter().zip(values.chunks_exact_mut(width.max(1))) {
            matrix.expand(*index as usize, 0..width, out)?;
        }
        Tensor::from_vec(values, (indices.len(), width), &Device::Cpu)
    }
}

/// The product with each group of parts that is expanded at a time, side by side. Memory that is freed is used for the next one.
fn product_in_groups<'a>(
    x: &Tensor,
    parts: &[PackedRows],
    bias: Option<&'a Tensor>,
    bytes_max: usize,
) -> candle_core::Result<MatrixProduct<'a>> {
    let row_bytes = x.dims().last().copied().unwrap_or_default() * x.dtype().size_in_bytes();
    if group_at_front(parts, row_bytes, bytes_max) == parts.len() {
        return matrix_product(x, &expanded(parts)?, bias);
    }
    let (mut products, mut left, mut start) = (Vec::new(), parts, 0);
    while !left.is_empty() {
        let (group, later) = left.split_at(group_at_front(left, row_bytes, bytes_max));
        let rows = group.iter().map(PackedRows::rows).sum();
        let bias = bias.map(|bias| bias.narrow(0, start, rows)).transpose()?;
        products.push(linear(x, &expanded(group)?, bias.as_ref())?);
        (left, start) = (later, start + rows);
    }
    Tensor::cat(&products, 1).map(MatrixProduct::from)
}

/// How many of the parts are expanded together: at least one, and so many that their rows take up at most `bytes_max`.
fn group_at_front(parts: &[PackedRows], row_bytes: usize, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = parts.iter().take_while(|part| {
        bytes += part.rows() * row_bytes;
        bytes <= bytes_max
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::blocks::{BlockType, Coding};

    #[test]
    fn as_stored_and_a_lossy_precision_exclude_each_other_unless_the_file_is_in_e4m3() {
        let error = check_kept(WeightStorage::AsStored, Precision::Fp8, false).expect_err("both").to_string();
        assert!(error.contains("`--precision fp8` exclude each other for this file"), "{error}");
        for weights in [WeightStorage::Auto, WeightStorage::Expanded] {
            check_kept(weights, Precision::Fp8, false).expect("no conflict");
        }
        check_kept(WeightStorage::AsStored, Precision::Full, false).expect("no conflict");
        check_kept(WeightStorage::AsStored, Precision::Fp8, true).expect("nothing to quantize");
    }

    #[test]
    fn codes_are_kept_in_fp8_unless_weights_are_to_be_expanded() {
        let all = [WeightStorage::Auto, WeightStorage::AsStored, WeightStorage::Expanded];
        assert_eq!(all.map(|weights| is_e4m3_kept(weights, Precision::Fp8)), [true, true, false]);
        assert_eq!(all.map(|weights| is_e4m3_kept(weights, Precision::Full)), [false; 3]);
        let words = |weights, precision, counts| words_for_e4m3(weights, precision, counts).unwrap_or_default();
        let (auto, fp8) = (WeightStorage::Auto, Precision::Fp8);
        assert_eq!(words(auto, fp8, [6, 6]), "fp8, weights as in the file");
        assert_eq!(words(auto, fp8, [5, 6]), "fp8, weights of 5 of 6 layers as in the file");
        assert_eq!(words(auto, fp8, [0, 6]), "");
        assert_eq!(words(auto, Precision::Full, [6, 6]) + &words(WeightStorage::Expanded, fp8, [6, 6]), "");
    }

    /// What is for CUDA, on the CPU.
    #[test]
    fn groups_of_parts_give_the_product_with_all_of_them() {
        let part = |first: u8, rows: u8| {
            let codes: Vec<u8> = (0..rows * 8).map(|code| (first + code) % 0x70).collect();
            let coding = Coding::Blocks(BlockType::F8E4M3, 0.5);
            PackedRows::new(&codes, [rows.into(), 8], coding, &Device::Cpu).expect("fits")
        };
        let parts = [part(0, 3), part(9, 1), part(30, 4), part(50, 2)];
        let random = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).expect("random");
        let (x, bias) = (random(&[9, 8]), random(&[10]));
        let numbers = |bias: Option<&Tensor>, bytes_max| {
            let product = product_in_groups(&x, &parts, bias, bytes_max).and_then(|product| product.biased());
            product.and_then(|product| product.to_vec2::<f32>()).expect("multiplies")
        };
        for bias in [None, Some(&bias)] {
            let whole = numbers(bias, 10 * 32);
            // Four rows together, each part by itself, less than a part.
            for bytes_max in [4 * 32, 3 * 32, 1] {
                let grouped = numbers(bias, bytes_max);
                let mut pairs = whole.iter().flatten().zip(grouped.iter().flatten());
                assert!(pairs.all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs().max(1.0)), "{bytes_max}");
                assert_eq!(grouped[0].len(), 10);
            }
        }
        let row_bytes = 8 * size_of::<f32>();
        assert_eq!([10 * 32, 4 * 32, 1].map(|max| group_at_front(&parts, row_bytes, max)), [4, 2, 1]);
    }
}
