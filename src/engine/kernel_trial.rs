//! A trial of a faster kernel, to be run in a process of its own: a kernel that fails takes the driver's context with it, and
//! one that hangs its thread.

use super::error::LoadError;
use super::{device, ops};
use crate::domain::device::{DeviceChoice, FasterKernel};

/// Outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelTrial {
    /// The outputs are those of the portable kernel, but for rounding.
    Agrees,
    /// They are not.
    Disagrees,
    /// The device has no such kernel, or the program was built without it.
    Missing,
}

/// Whether a device may have faster kernels, found without opening it: those for Hopper, compute capability 9.0.
#[must_use]
pub fn may_have_faster_kernels(choice: DeviceChoice) -> bool {
    device::capability_unopened(choice).is_some_and(|(major, _)| major == 9)
}

/// Runs a faster kernel and the portable one on the same random numbers.
///
/// # Errors
/// When the device is not available, or a kernel fails.
pub fn try_kernel(choice: DeviceChoice, kernel: FasterKernel) -> Result<KernelTrial, LoadError> {
    let device = device::open(choice)?;
    let kernels = match kernel {
        FasterKernel::Attention => &ops::attention::KERNELS,
        FasterKernel::Convolution => &ops::convolution::KERNELS,
    };
    Ok(match kernels.agrees(&device)? {
        Some(true) => KernelTrial::Agrees,
        Some(false) => KernelTrial::Disagrees,
        None => KernelTrial::Missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_faster_kernels() {
        assert!(!may_have_faster_kernels(DeviceChoice::Cpu));
        for kernel in FasterKernel::ALL {
            assert_eq!(try_kernel(DeviceChoice::Cpu, kernel).expect("the CPU is there"), KernelTrial::Missing);
        }
    }
}
