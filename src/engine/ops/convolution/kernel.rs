//! Which kernel convolves on a CUDA device. A faster one is used after it has been found, on the device itself, to agree with
//! the one that every device has.

use std::sync::{PoisonError, RwLock};

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};

use super::channels_last::ChannelsLast;
use crate::domain::device::Kernels;
use crate::engine::noise::standard_normal;

/// What convolves on a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// `kernels/convolution.cu`, by products of a warp: on every device.
    Warp,
    /// `kernels/convolution_hopper.cu`, by products of a warpgroup: on Hopper. Few outputs go to [`Kernel::Warp`].
    Warpgroup,
}

/// Devices on which [`Kernel::Warpgroup`] is used.
static BY_WARPGROUPS: RwLock<Vec<DeviceLocation>> = RwLock::new(Vec::new());

/// The picture on which the kernels are compared: tails of tiles, of steps and of blocks of outputs, odd and even steps.
const INPUTS: usize = 144;
const OUTPUTS: usize = 136;
const HEIGHT: usize = 18;
const WIDTH: usize = 24;

/// How far the kernels may differ, in an output and as a share of it: both round it to bf16, which keeps eight bits, from sums
/// that they take in another order.
const DIFFERENCE_MAX: f32 = 0.01;

/// The kernels that a device has, [`Kernel::Warp`] first.
pub(crate) fn kernels(device: &Device) -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Warp];
    if has_warpgroups(device) {
        kernels.push(Kernel::Warpgroup);
    }
    kernels
}

/// Decides by which kernel the convolutions of a device are loaded from now on, and says why in the log. The setting is that
/// of attention: what it is about is the products of a warpgroup. The CPU has no choice.
pub(crate) fn choose(device: &Device, setting: Kernels) {
    if !device.is_cuda() {
        return;
    }
    let (kernel, reason) = match setting {
        Kernels::Portable => (Kernel::Warp, "so it was asked for"),
        Kernels::Auto if !has_warpgroups(device) => {
            (Kernel::Warp, "the device has no products of a warpgroup, or the program was not built for them")
        }
        Kernels::Auto => match do_agree(device) {
            Ok(true) => (Kernel::Warpgroup, "it agrees with the other one"),
            Ok(false) => {
                tracing::warn!("the faster kernel of convolutions does not agree with the other one, and is not used");
                (Kernel::Warp, "the faster one does not agree with it")
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the faster kernel of convolutions does not run; `kernels = \"portable\"` leaves it alone"
                );
                (Kernel::Warp, "the faster one does not run")
            }
        },
    };
    tracing::info!(?kernel, reason, "convolutions");
    let mut by_warpgroups = BY_WARPGROUPS.write().unwrap_or_else(PoisonError::into_inner);
    by_warpgroups.retain(|location| *location != device.location());
    if kernel == Kernel::Warpgroup {
        by_warpgroups.push(device.location());
    }
}

/// The kernel that was chosen for a device.
pub(super) fn chosen(device: &Device) -> Kernel {
    let by_warpgroups = BY_WARPGROUPS.read().unwrap_or_else(PoisonError::into_inner);
    if by_warpgroups.contains(&device.location()) { Kernel::Warpgroup } else { Kernel::Warp }
}

/// Whether both kernels make the same of random numbers, but for rounding.
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
        if !are_close(&made(Kernel::Warp, is_doubled)?, &made(Kernel::Warpgroup, is_doubled)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is no number is close to nothing.
fn are_close(some: &[f32], others: &[f32]) -> bool {
    let mut pairs = some.iter().zip(others);
    some.len() == others.len() && pairs.all(|(one, other)| (one - other).abs() <= DIFFERENCE_MAX * (1.0 + one.abs()))
}

#[cfg(feature = "cuda")]
fn has_warpgroups(device: &Device) -> bool {
    matches!(device, Device::Cuda(device) if crate::engine::ops::cuda::convolution::has_warpgroups(device))
}

#[cfg(not(feature = "cuda"))]
fn has_warpgroups(_: &Device) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_one_kernel_and_no_choice() {
        assert_eq!(kernels(&Device::Cpu), [Kernel::Warp]);
        choose(&Device::Cpu, Kernels::Auto);
        assert_eq!(chosen(&Device::Cpu), Kernel::Warp);
    }

    #[test]
    fn what_differs_or_is_no_number_is_not_close() {
        assert!(are_close(&[1.0, -2.0, 100.0], &[1.01, -2.02, 100.5]));
        assert!(!are_close(&[1.0, -2.0], &[1.0, -2.04]));
        assert!(!are_close(&[1.0, f32::NAN], &[1.0, f32::NAN]));
        assert!(!are_close(&[1.0], &[1.0, 1.0]));
    }
}
