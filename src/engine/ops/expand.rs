//! Rows of quantized weights on a device, and their expansion: on CUDA to bf16 by a kernel (`kernels/expand.cu`), rounded once; on
//! the CPU to f32. Either way from the numbers of `engine/blocks`.

pub(super) mod packed;

use candle_core::{Result, Tensor, bail};

use super::cuda;
pub(crate) use packed::PackedRows;

/// The numbers of rows that are equally wide, one below the other: `[rows, columns]`, bf16 on CUDA, f32 on the CPU.
///
/// # Errors
/// When they are not equally wide, or the device fails.
pub(crate) fn expanded(parts: &[PackedRows]) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("no rows to expand") };
    let (rows, columns) = (parts.iter().map(|part| part.rows).sum(), first.columns);
    if let Some(part) = parts.iter().find(|part| part.columns != columns) {
        bail!("rows of {columns} and of {} numbers", part.columns);
    }
    if first.codes.device().is_cuda() {
        return cuda::expand::expanded(parts, rows, columns);
    }
    let mut numbers = vec![0.0; rows * columns];
    let mut left = numbers.as_mut_slice();
    for part in parts {
        let (now, later) = std::mem::take(&mut left).split_at_mut(part.rows * columns);
        part.expand_on_cpu(now)?;
        left = later;
    }
    Tensor::from_vec(numbers, (rows, columns), first.codes.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::engine::blocks::{BlockType, Coding};

    fn numbers(parts: &[PackedRows]) -> Vec<f32> {
        expanded(parts).and_then(|all| all.flatten_all()?.to_vec1()).expect("expands")
    }

    #[test]
    fn rows_of_different_codings_stand_one_below_the_other() {
        let on_cpu =
            |codes: &[u8], rows, coding| PackedRows::new(codes, [rows, 8], coding, &Device::Cpu).expect("fits");
        let levels: [f32; 16] = std::array::from_fn(|level| level as f32);
        let parts = [
            on_cpu(&[0x38; 8], 1, Coding::Blocks(BlockType::F8E4M3, 2.0)),
            on_cpu(&[0x12; 8], 2, Coding::FourBits { levels: &levels, block: 8, scales: vec![1.0, 10.0] }),
            on_cpu(&[127, 0x81, 0, 0, 0, 0, 0, 0], 1, Coding::Int8 { scales: &[2.0] }),
        ];
        let four = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0];
        let step = 1.0 / 127.0_f32;
        let last = [127.0 * 2.0 * step, -127.0 * 2.0 * step, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let expected = [[2.0; 8], four, four.map(|number| 10.0 * number), last].concat();
        assert_eq!(numbers(&parts), expected);
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let refused = |codes: &[u8], shape, coding| {
            PackedRows::new(codes, shape, coding, &Device::Cpu).expect_err("does not fit").to_string()
        };
        let plain = Coding::Blocks(BlockType::F8E4M3, 1.0);
        assert!(refused(&[0; 7], [1, 8], plain.clone()).contains("7 bytes"));
        assert!(refused(&[0; 12], [1, 12], plain).contains("chunks of 8"));
        assert!(refused(&[0; 34], [1, 24], Coding::Blocks(BlockType::Q8_0, 1.0)).contains("no whole blocks"));
        assert!(refused(&[0; 16], [2, 8], Coding::Int8 { scales: &[1.0] }).contains("1 scales for 2 rows"));
    }
}
