//! Which of two kernels does something on a CUDA device. A faster one is used after it has been found, on the device itself, to
//! agree with the one that every device has.

use std::sync::{PoisonError, RwLock};

use candle_core::{Device, DeviceLocation, Result};

use crate::domain::device::Kernels;

/// By which instructions a kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// By products of a warp, `kernels/NAME.cu`: on every device.
    Warp,
    /// By products of a warpgroup, `kernels/NAME_hopper.cu`: on Hopper. What that one is not compiled for goes to
    /// [`Kernel::Warp`].
    Warpgroup,
}

/// Something that there are two kernels for.
pub(crate) struct Choice {
    /// In words for the log.
    what: &'static str,
    /// Whether [`Kernel::Warpgroup`] is compiled in, and the device has what it takes.
    has_warpgroups: fn(&Device) -> bool,
    /// Whether both make the same of random numbers, but for rounding.
    do_agree: fn(&Device) -> Result<bool>,
    /// Devices on which [`Kernel::Warpgroup`] is used.
    by_warpgroups: RwLock<Vec<DeviceLocation>>,
}

impl Choice {
    pub(super) const fn new(
        what: &'static str,
        has_warpgroups: fn(&Device) -> bool,
        do_agree: fn(&Device) -> Result<bool>,
    ) -> Self {
        Self { what, has_warpgroups, do_agree, by_warpgroups: RwLock::new(Vec::new()) }
    }

    /// The kernels that a device has, [`Kernel::Warp`] first.
    pub(crate) fn kernels(&self, device: &Device) -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Warp];
        if (self.has_warpgroups)(device) {
            kernels.push(Kernel::Warpgroup);
        }
        kernels
    }

    /// Decides which kernel is used on a device from now on, and says why in the log. The CPU has no choice.
    pub(crate) fn choose(&self, device: &Device, setting: Kernels) {
        if !device.is_cuda() {
            return;
        }
        let (kernel, reason) = match setting {
            Kernels::Portable => (Kernel::Warp, "so it was asked for"),
            Kernels::Auto if !(self.has_warpgroups)(device) => {
                (Kernel::Warp, "the device has no products of a warpgroup, or the program was not built for them")
            }
            Kernels::Auto => self.tried(device),
        };
        tracing::info!(?kernel, reason, "{}", self.what);
        let mut by_warpgroups = self.by_warpgroups.write().unwrap_or_else(PoisonError::into_inner);
        by_warpgroups.retain(|location| *location != device.location());
        if kernel == Kernel::Warpgroup {
            by_warpgroups.push(device.location());
        }
    }

    fn tried(&self, device: &Device) -> (Kernel, &'static str) {
        let what = self.what;
        match (self.do_agree)(device) {
            Ok(true) => (Kernel::Warpgroup, "it agrees with the other one"),
            Ok(false) => {
                tracing::warn!("the faster kernel of {what} does not agree with the other one, and is not used");
                (Kernel::Warp, "the faster one does not agree with it")
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the faster kernel of {what} does not run; `kernels = \"portable\"` leaves it alone"
                );
                (Kernel::Warp, "the faster one does not run")
            }
        }
    }

    /// The kernel that was chosen for a device.
    pub(super) fn chosen(&self, device: &Device) -> Kernel {
        let by_warpgroups = self.by_warpgroups.read().unwrap_or_else(PoisonError::into_inner);
        if by_warpgroups.contains(&device.location()) { Kernel::Warpgroup } else { Kernel::Warp }
    }
}

/// Whether no two numbers are further apart than `difference_max` allows for the first. What is no number is close to nothing.
pub(super) fn are_close(some: &[f32], others: &[f32], difference_max: impl Fn(f32) -> f32) -> bool {
    let mut pairs = some.iter().zip(others);
    some.len() == others.len() && pairs.all(|(one, other)| (one - other).abs() <= difference_max(*one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_one_kernel_and_no_choice() {
        let choice = Choice::new("nothing", Device::is_cuda, |_| Ok(true));
        assert_eq!(choice.kernels(&Device::Cpu), [Kernel::Warp]);
        choice.choose(&Device::Cpu, Kernels::Auto);
        assert_eq!(choice.chosen(&Device::Cpu), Kernel::Warp);
    }

    /// As if there were a device with both kernels.
    #[test]
    fn what_does_not_agree_or_does_not_run_is_not_used() {
        let of = |do_agree| Choice::new("nothing", |_| true, do_agree).tried(&Device::Cpu).0;
        assert_eq!(of(|_| Ok(true)), Kernel::Warpgroup);
        assert_eq!(of(|_| Ok(false)), Kernel::Warp);
        assert_eq!(of(|_| candle_core::bail!("no")), Kernel::Warp);
    }

    #[test]
    fn what_differs_or_is_no_number_is_not_close() {
        let are_close = |some: &[f32], others: &[f32]| are_close(some, others, |one| 0.01 * (1.0 + one.abs()));
        assert!(are_close(&[1.0, -2.0, 100.0], &[1.01, -2.02, 100.5]));
        assert!(!are_close(&[1.0, -2.0], &[1.0, -2.04]));
        assert!(!are_close(&[1.0, f32::NAN], &[1.0, f32::NAN]));
        assert!(!are_close(&[1.0], &[1.0, 1.0]));
    }
}
