//! Which kernel computes attention on a CUDA device. A faster one is used after it has been found, on the device itself, to
//! agree with the one that every device has.

use std::sync::{PoisonError, RwLock};

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};

use super::attention_by;
use crate::domain::device::Kernels;
use crate::engine::noise::standard_normal;
use crate::engine::ops::Segments;

/// What computes attention on a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// `kernels/attention.cu`, by products of a warp: on every device.
    Warp,
    /// `kernels/attention_hopper.cu`, by products of a warpgroup: on Hopper, for heads of 128. Others go to
    /// [`Kernel::Warp`].
    Warpgroup,
}

/// Devices on which [`Kernel::Warpgroup`] is used.
static BY_WARPGROUPS: RwLock<Vec<DeviceLocation>> = RwLock::new(Vec::new());

/// The sequences on which the kernels are compared: several tiles with a tail, one row, whole tiles, less than a tile.
const LENGTHS: [usize; 4] = [300, 1, 256, 77];
const HEADS: usize = 2;
const HEAD_WIDTH: usize = 128;

/// How far the kernels may differ in an answer to numbers of deviation 1. Of sequences of these lengths it is smaller than
/// 2, or a value itself: each kernel rounds it to bf16 and errs by some 0.002 before.
const DIFFERENCE_MAX: f32 = 0.02;

/// The kernels that a device has, [`Kernel::Warp`] first.
pub(crate) fn kernels(device: &Device) -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Warp];
    if has_warpgroups(device) {
        kernels.push(Kernel::Warpgroup);
    }
    kernels
}

/// Decides which kernel [`super::attention`] uses on a device from now on, and says why in the log. The CPU has no choice.
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
            Ok(true) => {
                if let Some(bytes) = spilled_bytes(device).filter(|bytes| *bytes > 0) {
                    tracing::warn!(bytes, "the driver's compiler spills registers of attention's kernel: it is slower");
                }
                (Kernel::Warpgroup, "it agrees with the other one")
            }
            Ok(false) => {
                tracing::warn!("the faster kernel of attention does not agree with the other one, and is not used");
                (Kernel::Warp, "the faster one does not agree with it")
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the faster kernel of attention does not run; `kernels = \"portable\"` leaves it alone"
                );
                (Kernel::Warp, "the faster one does not run")
            }
        },
    };
    tracing::info!(?kernel, reason, "attention");
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

/// Whether both kernels give the same answers to random numbers, but for rounding.
fn do_agree(device: &Device) -> Result<bool> {
    let segments = Segments::from_lengths(LENGTHS);
    let shape = (segments.rows(), 3 * HEADS * HEAD_WIDTH);
    let numbers = Tensor::from_vec(standard_normal(1, 0, shape.0 * shape.1), shape, &Device::Cpu)?;
    let qkv = numbers.to_dtype(DType::BF16)?.to_device(device)?;
    let answers = |kernel| {
        let answers = attention_by(kernel, &qkv, HEADS, &segments)?;
        answers.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    };
    Ok(are_close(&answers(Kernel::Warp)?, &answers(Kernel::Warpgroup)?))
}

/// What is no number is close to nothing.
fn are_close(some: &[f32], others: &[f32]) -> bool {
    some.len() == others.len() && some.iter().zip(others).all(|(one, other)| (one - other).abs() <= DIFFERENCE_MAX)
}

#[cfg(feature = "cuda")]
fn has_warpgroups(device: &Device) -> bool {
    matches!(device, Device::Cuda(device) if crate::engine::ops::cuda::attention::has_warpgroups(device))
}

#[cfg(not(feature = "cuda"))]
fn has_warpgroups(_: &Device) -> bool {
    false
}

#[cfg(feature = "cuda")]
fn spilled_bytes(device: &Device) -> Option<i32> {
    let Device::Cuda(device) = device else { return None };
    crate::engine::ops::cuda::attention::spilled_bytes(device).ok()
}

#[cfg(not(feature = "cuda"))]
fn spilled_bytes(_: &Device) -> Option<i32> {
    None
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
        assert!(are_close(&[1.0, -2.0], &[1.01, -2.0]));
        assert!(!are_close(&[1.0, -2.0], &[1.0, -2.03]));
        assert!(!are_close(&[1.0, f32::NAN], &[1.0, f32::NAN]));
        assert!(!are_close(&[1.0], &[1.0, 1.0]));
    }
}
