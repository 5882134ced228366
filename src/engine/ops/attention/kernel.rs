//! The kernels of attention on a CUDA device: `kernels/attention.cu`, and `kernels/attention_hopper.cu` for heads of 128.

use candle_core::{DType, Device, Result, Tensor};

use super::packed::attention_by;
use crate::engine::noise::standard_normal;
use crate::engine::ops::Segments;
use crate::engine::ops::cuda::attention::{has_warpgroups, spilled_bytes};
use crate::engine::ops::kernel::{Choice, Kernel, are_close};

/// The kernels of attention.
pub(crate) static CHOICE: Choice = Choice::new("attention", has_warpgroups, do_agree);

/// The sequences on which the kernels are compared: several tiles with a tail, one row, exact tiles, less than a tile.
const LENGTHS: [usize; 4] = [300, 1, 256, 77];
const HEADS: usize = 2;
const HEAD_WIDTH: usize = 128;

/// How far the kernels may differ in an output, for inputs of deviation 1. Outputs of sequences of these lengths are below 2, or
/// a value itself: each kernel rounds them to bf16, and errs by some 0.002 before.
const DIFFERENCE_MAX: f32 = 0.02;

/// Whether both kernels give the same outputs for random numbers, but for rounding.
fn do_agree(device: &Device) -> Result<bool> {
    let segments = Segments::from_lengths(LENGTHS);
    let shape = (segments.rows(), 3 * HEADS * HEAD_WIDTH);
    let numbers = Tensor::from_vec(standard_normal(1, 0, shape.0 * shape.1), shape, &Device::Cpu)?;
    let qkv = numbers.to_dtype(DType::BF16)?.to_device(device)?;
    let outputs = |kernel| {
        let out = attention_by(kernel, &qkv, HEADS, &segments)?;
        out.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    };
    let agrees = are_close(&outputs(Kernel::Warp)?, &outputs(Kernel::Warpgroup)?, |_| DIFFERENCE_MAX);
    if let Some(bytes) = spilled_bytes(device).filter(|bytes| *bytes > 0) {
        tracing::warn!(bytes, "the driver's compiler spills registers of the attention kernel, which is slower");
    }
    Ok(agrees)
}
