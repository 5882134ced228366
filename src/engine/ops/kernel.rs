//! The choice between two kernels on a CUDA device. The faster one is used once it has been found, on the device itself, to agree
//! with the portable one.

use std::sync::{PoisonError, RwLock};

use candle_core::{Device, DeviceLocation, Result, bail};

use crate::domain::device::{KernelFault, Kernels};

/// The instructions by which a kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Matrix instructions of a warp, `kernels/NAME.cu`: on every device.
    Warp,
    /// Matrix instructions of a warpgroup, `kernels/NAME_hopper.cu`: on Hopper. Shapes for which that is not compiled go to
    /// [`Kernel::Warp`].
    Warpgroup,
    /// The same for attention, whose warpgroups take turns. Nothing chooses it: which of the two is faster has to be measured.
    OrderedWarpgroup,
}

impl Kernel {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warp => "portable",
            Self::Warpgroup => "hopper",
            Self::OrderedWarpgroup => "hopper, ordered",
        }
    }
}

/// Why a device has no [`Kernel::Warpgroup`].
pub(crate) const NO_WARPGROUPS: &str = "the device has no such kernel, or the program was not built for it";

/// An operation with two kernels.
pub(crate) struct Choice {
    /// Its name in the log.
    what: &'static str,
    /// Whether the device has [`Kernel::Warpgroup`].
    has_warpgroups: fn(&Device) -> bool,
    /// Whether both give the same outputs for random numbers, but for rounding.
    do_agree: fn(&Device) -> Result<bool>,
    /// Devices on which [`Kernel::Warpgroup`] is used.
    by_warpgroups: RwLock<Vec<DeviceLocation>>,
    /// Why each device has the kernel that it has.
    reasons: RwLock<Vec<(DeviceLocation, String)>>,
}

impl Choice {
    pub(super) const fn new(
        what: &'static str,
        has_warpgroups: fn(&Device) -> bool,
        do_agree: fn(&Device) -> Result<bool>,
    ) -> Self {
        let by_warpgroups = RwLock::new(Vec::new());
        let reasons = RwLock::new(Vec::new());
        Self { what, has_warpgroups, do_agree, by_warpgroups, reasons }
    }

    /// The kernels that a device has, [`Kernel::Warp`] first.
    pub(crate) fn kernels(&self, device: &Device) -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Warp];
        if (self.has_warpgroups)(device) {
            kernels.push(Kernel::Warpgroup);
        }
        kernels
    }

    /// Chooses the kernel for a device, and logs the reason. The CPU has no choice. `fault` is what a trial in another process
    /// found.
    ///
    /// # Errors
    /// When the faster kernel breaks the device.
    pub(crate) fn choose(&self, device: &Device, setting: Kernels, fault: Option<KernelFault>) -> Result<()> {
        if !device.is_cuda() {
            return Ok(());
        }
        let (kernel, reason) = match (setting, fault) {
            (Kernels::Portable, _) => (Kernel::Warp, "as configured".to_owned()),
            (Kernels::Auto, _) if !(self.has_warpgroups)(device) => (Kernel::Warp, NO_WARPGROUPS.to_owned()),
            (Kernels::Auto, Some(fault)) => (Kernel::Warp, fault.to_string()),
            (Kernels::Auto, None) => {
                let (kernel, reason) = self.tried(device, Device::synchronize)?;
                (kernel, reason.to_owned())
            }
        };
        tracing::info!(?kernel, reason, "{}", self.what);
        self.keep_reason(device, reason);
        let mut by_warpgroups = self.by_warpgroups.write().unwrap_or_else(PoisonError::into_inner);
        by_warpgroups.retain(|location| *location != device.location());
        if kernel == Kernel::Warpgroup {
            by_warpgroups.push(device.location());
        }
        Ok(())
    }

    /// Whether the faster kernel agrees with the portable one; `None` where the device has none.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn agrees(&self, device: &Device) -> Result<Option<bool>> {
        if (self.has_warpgroups)(device) { (self.do_agree)(device).map(Some) } else { Ok(None) }
    }

    /// Some errors of a kernel stay with the process: then no other kernel runs any more.
    fn tried(&self, device: &Device, synchronize: fn(&Device) -> Result<()>) -> Result<(Kernel, &'static str)> {
        let what = self.what;
        Ok(match (self.do_agree)(device) {
            Ok(true) => (Kernel::Warpgroup, "it agrees with the portable kernel"),
            Ok(false) => {
                tracing::warn!("the faster kernel of {what} does not agree with the portable one and is not used");
                (Kernel::Warp, "the faster kernel does not agree with it")
            }
            Err(error) if synchronize(device).is_err() => bail!(
                "the faster kernel of {what} has broken the device ({error}): start again with `--kernels portable`"
            ),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the faster kernel of {what} does not run; `kernels = \"portable\"` skips it"
                );
                (Kernel::Warp, "the faster kernel does not run")
            }
        })
    }

    fn keep_reason(&self, device: &Device, reason: impl Into<String>) {
        let mut reasons = self.reasons.write().unwrap_or_else(PoisonError::into_inner);
        reasons.retain(|(location, _)| *location != device.location());
        reasons.push((device.location(), reason.into()));
    }

    /// The name of the kernel that a device uses, and why.
    pub(crate) fn explained(&self, device: &Device) -> (&'static str, String) {
        if !device.is_cuda() {
            return ("cpu", "the CPU has one kernel".to_owned());
        }
        let reasons = self.reasons.read().unwrap_or_else(PoisonError::into_inner);
        let reason = reasons.iter().find(|(location, _)| *location == device.location());
        let reason = reason.map_or("none was chosen yet", |(_, reason)| reason);
        (self.chosen(device).name(), reason.to_owned())
    }

    /// The kernel that was chosen for a device.
    pub(super) fn chosen(&self, device: &Device) -> Kernel {
        let by_warpgroups = self.by_warpgroups.read().unwrap_or_else(PoisonError::into_inner);
        if by_warpgroups.contains(&device.location()) { Kernel::Warpgroup } else { Kernel::Warp }
    }
}

/// Whether all pairs of numbers differ by at most `difference_max` of the first. NaN is close to nothing.
pub(super) fn are_close(some: &[f32], others: &[f32], difference_max: impl Fn(f32) -> f32) -> bool {
    let mut pairs = some.iter().zip(others);
    some.len() == others.len() && pairs.all(|(one, other)| (one - other).abs() <= difference_max(*one))
}

/// Bytes of shared memory that CUDA adds to every block.
const RESERVED_BYTES: usize = 1024;

/// Whether a multiprocessor has shared memory for two blocks of a kernel that takes `block_bytes`.
#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the CPU has no multiprocessors"))]
pub(super) fn do_two_fit(block_bytes: usize, multiprocessor_bytes: usize) -> bool {
    2 * (block_bytes + RESERVED_BYTES) <= multiprocessor_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_one_kernel_and_no_choice() {
        let choice = Choice::new("nothing", Device::is_cuda, |_| Ok(true));
        assert_eq!(choice.kernels(&Device::Cpu), [Kernel::Warp]);
        choice.choose(&Device::Cpu, Kernels::Auto, None).expect("nothing to choose");
        assert!(choice.agrees(&Device::Cpu).expect("nothing to try").is_none());
        assert_eq!(choice.chosen(&Device::Cpu), Kernel::Warp);
        assert_eq!(choice.explained(&Device::Cpu), ("cpu", "the CPU has one kernel".to_owned()));
    }

    #[test]
    fn the_latest_reason_of_a_device_is_kept() {
        let choice = Choice::new("nothing", Device::is_cuda, |_| Ok(true));
        choice.keep_reason(&Device::Cpu, "first");
        choice.keep_reason(&Device::Cpu, "second");
        let reasons = choice.reasons.read().expect("sound");
        assert_eq!(*reasons, [(DeviceLocation::Cpu, "second".to_owned())]);
    }

    /// On a pretended device with both kernels.
    #[test]
    fn a_kernel_that_does_not_agree_or_run_is_not_used() {
        let of = |do_agree| {
            let choice = Choice::new("nothing", |_| true, do_agree);
            choice.tried(&Device::Cpu, |_| Ok(())).expect("the device works").0
        };
        assert_eq!(of(|_| Ok(true)), Kernel::Warpgroup);
        assert_eq!(of(|_| Ok(false)), Kernel::Warp);
        assert_eq!(of(|_| candle_core::bail!("no")), Kernel::Warp);
    }

    #[test]
    fn a_kernel_that_breaks_the_device_ends_loading_with_a_hint() {
        let choice = Choice::new("nothing", |_| true, |_| bail!("CUDA_ERROR_ILLEGAL_ADDRESS"));
        let error =
            choice.tried(&Device::Cpu, |_| bail!("CUDA_ERROR_ILLEGAL_ADDRESS")).expect_err("broken").to_string();
        assert!(error.contains("`--kernels portable`") && error.contains("ILLEGAL_ADDRESS"), "{error}");
    }

    #[test]
    fn numbers_that_differ_and_nan_are_not_close() {
        let are_close = |some: &[f32], others: &[f32]| are_close(some, others, |one| 0.01 * (1.0 + one.abs()));
        assert!(are_close(&[1.0, -2.0, 100.0], &[1.01, -2.02, 100.5]));
        assert!(!are_close(&[1.0, -2.0], &[1.0, -2.04]));
        assert!(!are_close(&[1.0, f32::NAN], &[1.0, f32::NAN]));
        assert!(!are_close(&[1.0], &[1.0, 1.0]));
    }

    /// Of 64 KiB, as attention takes for heads of 128: an A100 and a Hopper have room for two, Ada has not.
    #[test]
    fn two_blocks_fit_with_what_cuda_adds_to_each() {
        let do_fit = |kibibytes: usize| do_two_fit(64 << 10, kibibytes << 10);
        assert_eq!([164, 228, 130].map(do_fit), [true; 3]);
        assert_eq!([100, 128, 129].map(do_fit), [false; 3]);
    }
}
