//! Launches of the kernels in `kernels/quantize.cu`, which quantize rows to e4m3: codes and a scale for each row, as two
//! tensors.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Storage, Tensor, bail};

use super::modules::Kernels;
use super::rows::check_modulation;
use super::{Bounds, Matrix, THREADS, grid, number, push_or_null, with_bias};
use crate::engine::ops::quantize::widths::{CODES, WIDTH_MAX, is_possible};
use crate::engine::ops::segments::Segments;

const KERNELS: Kernels = Kernels::new("quantize", include_bytes!(concat!(env!("OUT_DIR"), "/quantize.fatbin")));

/// Maximum values of a row of which a thread holds one chunk. [`WIDTH_MAX`] is four chunks.
const NARROW_MAX: usize = THREADS as usize * CODES;

/// A partial result for each warp of a block.
const SHARED_BYTES: u32 = THREADS / 32 * 4;

/// Whether a kernel normalizes and quantizes rows of so many values.
pub(in crate::engine::ops) fn is_narrow(width: usize) -> bool {
    width.is_multiple_of(CODES) && width <= NARROW_MAX
}

/// Codes `[rows, width]` and scales `[rows]` of `x [rows, width]`.
pub(in crate::engine::ops) fn rows(x: &Tensor) -> Result<[Tensor; 2]> {
    with_matrix(x, |x, device| {
        let mut out = Outputs::new(device, x.rows, x.width)?;
        let name = if is_narrow(x.width) { "quantize_narrow" } else { "quantize_wide" };
        let kernel = KERNELS.get(device, name)?;
        let [width, stride] = [number(x.width)?, number(x.stride)?];
        let mut launch = kernel.builder();
        launch.arg(&x.values).arg(&mut out.codes).arg(&mut out.scales).arg(&width).arg(&stride);
        // SAFETY: the arguments are those of quantize.cu; the kernel holds rows of this width.
        unsafe { launch.launch(grid(x.rows, 1, SHARED_BYTES)) }.w()?;
        Ok(out.into_tensors(device, x.rows, x.width))
    })
}

/// Of `[left | gelu_tanh(right + bias)]`; without a left side, of GELU alone.
pub(in crate::engine::ops) fn beside_gelu_tanh(
    left: Option<&Tensor>,
    right: &Tensor,
    bias: Option<&Tensor>,
) -> Result<[Tensor; 2]> {
    with_matrix(right, |right, device| match left {
        None => beside(None, right, bias, device),
        Some(left) => with_matrix(left, |left, _| beside(Some(left), right, bias, device)),
    })
}

fn beside(left: Option<&Matrix>, right: &Matrix, bias: Option<&Tensor>, device: &CudaDevice) -> Result<[Tensor; 2]> {
    let (left_width, left_stride) = left.map_or((0, 0), |left| (left.width, left.stride));
    if left.is_some_and(|left| left.rows != right.rows) || !left_width.is_multiple_of(CODES) {
        bail!("{left_width} columns of other rows, or not in chunks of {CODES}, beside {} rows", right.rows);
    }
    let width = left_width + right.width;
    let mut out = Outputs::new(device, right.rows, width)?;
    let kernel = KERNELS.get(device, "quantize_beside_gelu_tanh")?;
    let numbers = [number(left_width)?, number(right.width)?, number(left_stride)?, number(right.stride)?];
    with_bias(bias, right.width, |bias| {
        let mut launch = kernel.builder();
        // Without a left side its pointer is not read.
        launch.arg(left.map_or(&right.values, |left| &left.values)).arg(&right.values);
        push_or_null(&mut launch, bias.as_ref());
        launch.arg(&mut out.codes).arg(&mut out.scales);
        launch.arg(&numbers[0]).arg(&numbers[1]).arg(&numbers[2]).arg(&numbers[3]);
        // SAFETY: the arguments are those of quantize.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(right.rows, 1, SHARED_BYTES)) }.w()?;
        Ok(())
    })?;
    Ok(out.into_tensors(device, right.rows, width))
}

/// Of [`crate::engine::ops::modulation::modulated_layer_norm`], for a contiguous `x` whose rows are [`is_narrow`].
pub(in crate::engine::ops) fn modulated_layer_norm(
    x: &Tensor,
    [shift, scale]: [&Tensor; 2],
    segments: &Segments,
    epsilon: f32,
) -> Result<[Tensor; 2]> {
    with_matrix(x, |x, device| {
        with_matrix(shift, |shift, _| {
            with_matrix(scale, |scale, _| {
                check_modulation(x, &[shift, scale], segments)?;
                if !is_narrow(x.width) {
                    bail!("modulation: rows of {} are wider than {NARROW_MAX}, or not in chunks of {CODES}", x.width);
                }
                let bounds = Bounds::of(segments)?;
                let mut out = Outputs::new(device, x.rows, x.width)?;
                let kernel = KERNELS.get(device, "quantize_modulated_layer_norm")?;
                let [width, shift_stride, scale_stride] =
                    [number(x.width)?, number(shift.stride)?, number(scale.stride)?];
                let mut launch = kernel.builder();
                launch.arg(&x.values).arg(&shift.values).arg(&scale.values);
                launch.arg(&mut out.codes).arg(&mut out.scales).arg(&bounds);
                launch.arg(&width).arg(&shift_stride).arg(&scale_stride).arg(&epsilon);
                // SAFETY: the arguments are those of quantize.cu, and the sizes have been compared above.
                unsafe { launch.launch(grid(x.rows, 1, SHARED_BYTES)) }.w()?;
                Ok(out.into_tensors(device, x.rows, x.width))
            })
        })
    })
}

/// The outputs of a kernel.
struct Outputs {
    codes: CudaSlice<u8>,
    scales: CudaSlice<f32>,
}

impl Outputs {
    fn new(device: &CudaDevice, rows: usize, width: usize) -> Result<Self> {
        if !is_possible(width) {
            bail!("rows of {width} values are not in chunks of {CODES}, or more than {WIDTH_MAX}");
        }
        // SAFETY: the kernels write every row.
        Ok(unsafe { Self { codes: device.alloc(rows * width)?, scales: device.alloc(rows)? } })
    }

    fn into_tensors(self, device: &CudaDevice, rows: usize, width: usize) -> [Tensor; 2] {
        let codes = Storage::Cuda(CudaStorage::wrap_cuda_slice(self.codes, device.clone()));
        let scales = Storage::Cuda(CudaStorage::wrap_cuda_slice(self.scales, device.clone()));
        [
            Tensor::from_storage(codes, (rows, width), BackpropOp::none(), false),
            Tensor::from_storage(scales, rows, BackpropOp::none(), false),
        ]
    }
}

fn with_matrix<R>(x: &Tensor, body: impl FnOnce(&Matrix, &CudaDevice) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on a CUDA device") };
    body(&Matrix::new(storage, layout)?, storage.device())
}
