//! Launches of the kernel in `kernels/scale.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::{CudaDevice, Result, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, grid, number, with_values};

const KERNELS: Kernels = Kernels::new("scale", include_bytes!(concat!(env!("OUT_DIR"), "/scale.fatbin")));

/// Values of f32 in 16 bytes.
const SCALES: usize = 4;

/// Multiplies each row of `values [rows, columns]` by its scale, and each column by its own; the scales are `[rows]` and
/// `[columns]`, f32.
pub(super) fn rows_and_columns(
    values: &mut CudaSlice<bf16>,
    row_scales: &Tensor,
    column_scales: &Tensor,
    device: &CudaDevice,
) -> Result<()> {
    let (rows, columns) = (row_scales.dims1()?, column_scales.dims1()?);
    let is_aligned = columns.is_multiple_of(CHUNK) && column_scales.layout().start_offset().is_multiple_of(SCALES);
    if values.len() != rows * columns || !is_aligned {
        bail!("{rows} and {columns} scales for {} values, or not in chunks of {CHUNK}", values.len());
    }
    let kernel = KERNELS.get(device, "scale_rows_and_columns")?;
    let width = number(columns)?;
    with_values::<f32, _>(row_scales, |row_scales| {
        with_values::<f32, _>(column_scales, |column_scales| {
            let mut launch = kernel.builder();
            launch.arg(values).arg(&row_scales).arg(&column_scales).arg(&width);
            // SAFETY: the arguments are those of scale.cu, and the sizes have been compared above.
            unsafe { launch.launch(grid(rows, 1, 0)) }.w()?;
            Ok(())
        })
    })
}
