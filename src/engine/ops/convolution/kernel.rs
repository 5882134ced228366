//! The kernels of convolutions on a CUDA device: `kernels/convolution.cu`, and `kernels/convolution_hopper.cu` for more than
//! a few outputs.

use candle_core::{DType, Device, Result, Tensor};

use super::channels_last::ChannelsLast;
use crate::engine::noise::standard_normal;
use crate::engine::ops::cuda::convolution::has_warpgroups;
use crate::engine::ops::kernel::{Choice, Kernel, are_close};

/// The kernels of convolutions.
pub(crate) static CHOICE: Choice = Choice::new("convolutions", has_warpgroups, do_agree);

/// The size of the image on which the kernels are compared: with tails of tiles, steps and blocks of outputs, odd and even
/// steps.
const INPUTS: usize = 144;
const OUTPUTS: usize = 136;
const HEIGHT: usize = 18;
const WIDTH: usize = 24;

/// How far the kernels may differ, absolutely and relative to the output: both round to bf16, which has eight significant bits,
/// and sum in another order.
const DIFFERENCE_MAX: f32 = 0.01;

/// Whether both kernels give the same outputs for random numbers, but for rounding.
fn do_agree(device: &Device) -> Result<bool> {
    let random = |seed, shape: &[usize], factor: f64| {
        let numbers = standard_normal(seed, 0, shape.iter().product());
        (Tensor::from_vec(numbers, shape, &Device::Cpu)? * factor)?.to_dtype(DType::BF16)?.to_device(device)
    };
    let x = random(1, &[1, INPUTS, HEIGHT, WIDTH], 1.0)?;
    let weight = random(2, &[OUTPUTS, INPUTS, 3, 3], 1.0 / ((9 * INPUTS) as f64).sqrt())?;
    let bias = random(3, &[2 * OUTPUTS], 1.0)?.narrow(0, 0, OUTPUTS)?;
    let residual = random(4, &[1, OUTPUTS, HEIGHT, WIDTH], 1.0)?;
    let made = |kernel, is_doubled: bool| {
        let convolution = ChannelsLast::new(kernel, &weight, &bias, is_doubled)?;
        let made = convolution.forward(&x, (!is_doubled).then_some(&residual))?;
        made.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    };
    for is_doubled in [false, true] {
        let [one, other] = [made(Kernel::Warp, is_doubled)?, made(Kernel::Warpgroup, is_doubled)?];
        if !are_close(&one, &other, |one| DIFFERENCE_MAX * (1.0 + one.abs())) {
            return Ok(false);
        }
    }
    Ok(true)
}
