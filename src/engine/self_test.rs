//! Compares a device with the CPU: every operation of a step, on the same random numbers, in the device's precision, each on its
//! own.

mod autoencoder;
mod expansion;
mod fp8;
mod hopper;
mod operation;
mod portable;
mod products;
mod shapes;

use candle_core::{DType, Device, Result};
use serde::Serialize;

use super::error::LoadError;
use super::ops::kernel::{Choice, Kernel, NO_WARPGROUPS};
use super::ops::{attention, convolution};
use super::{device, storage};
use crate::domain::device::{DeviceChoice, Kernels};
use crate::domain::operation_group::OperationGroup;
use crate::domain::precision::Precision;
use operation::{Operation, Target};

/// The test of one operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperationReport {
    /// Its group.
    pub group: OperationGroup,
    /// Which operation.
    #[serde(rename = "operation")]
    pub name: &'static str,
    /// The difference from the CPU's result in f32, relative to that result, both by their Euclidean norms. `None` without a
    /// result.
    pub error: Option<f64>,
    /// The largest error that rounding explains in the device's precision.
    pub tolerance: f64,
    /// How long the device took, the first time.
    pub milliseconds: Option<f64>,
    /// What is wrong; `None` if the operation is right.
    pub failure: Option<String>,
}

/// What testing operations reports, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationEvent {
    /// An operation has ended.
    Done(OperationReport),
    /// A group was left out.
    Skipped {
        /// Which one.
        group: OperationGroup,
        /// Why.
        reason: String,
    },
    /// The device does not answer any more: nothing else can be tested in this process.
    Stopped {
        /// The group that was being tested.
        group: OperationGroup,
        /// What the device said.
        reason: String,
        /// The operations that did not run.
        left: Vec<(OperationGroup, &'static str)>,
    },
}

/// bf16 has eight significant bits: half a unit in the last place is 2⁻⁹, and a few of them may add up.
const BF16_TOLERANCE: f64 = 0.01;
const F32_TOLERANCE: f64 = 1e-5;

/// Runs the operations of some groups on the device and on the CPU. With [`Kernels::Portable`] the groups of faster kernels are
/// left out.
///
/// # Errors
/// When the device is not available.
pub fn run_operations(
    choice: DeviceChoice,
    kernels: Kernels,
    groups: &[OperationGroup],
    on_event: &mut dyn FnMut(OperationEvent),
) -> std::result::Result<(), LoadError> {
    run_operations_on(&*device::open(choice)?, kernels, groups, on_event);
    Ok(())
}

/// [`run_operations`] on a device that is open.
pub(super) fn run_operations_on(
    device: &Device,
    kernels: Kernels,
    groups: &[OperationGroup],
    on_event: &mut dyn FnMut(OperationEvent),
) {
    let target = Target { dtype: device::dtype(device), wait: &|| device.synchronize(), device };
    let mut run = Run { target, why_not: &|group| why_not(device, kernels, group), on_event };
    run.groups(groups, &operations());
}

/// All operations.
fn operations() -> Vec<&'static Operation> {
    let lists = [
        portable::OPERATIONS,
        expansion::OPERATIONS,
        hopper::OPERATIONS,
        products::OPERATIONS,
        autoencoder::OPERATIONS,
        fp8::OPERATIONS,
    ];
    lists.into_iter().flatten().collect()
}

/// Why a group cannot run on a device, if it cannot. The CPU computes all of them, and has one kernel for each operation.
fn why_not(device: &Device, kernels: Kernels, group: OperationGroup) -> Option<String> {
    let without = |choice: &Choice| {
        if device.is_cpu() {
            return None;
        }
        if kernels == Kernels::Portable {
            return Some("only the portable kernels were asked for".to_owned());
        }
        (!choice.kernels(device).contains(&Kernel::Warpgroup)).then(|| NO_WARPGROUPS.to_owned())
    };
    match group {
        OperationGroup::AttentionHopper => without(&attention::KERNELS),
        OperationGroup::ConvolutionHopper | OperationGroup::DoubledHopper => without(&convolution::KERNELS),
        OperationGroup::Fp8 => storage::check_device(device, Precision::Fp8).err().map(|error| error.to_string()),
        OperationGroup::Portable | OperationGroup::Products | OperationGroup::Autoencoder => None,
    }
}

/// A run of groups of operations.
struct Run<'a> {
    target: Target<'a>,
    /// Why a group is to be left out, if it is.
    why_not: &'a dyn Fn(OperationGroup) -> Option<String>,
    on_event: &'a mut dyn FnMut(OperationEvent),
}

impl Run<'_> {
    /// Tests the operations of each group, until the device answers no more.
    fn groups(&mut self, groups: &[OperationGroup], operations: &[&Operation]) {
        let of = |group| operations.iter().copied().filter(move |operation: &&Operation| operation.group == group);
        for (at, &group) in groups.iter().enumerate() {
            let later = || groups[at + 1..].iter().flat_map(|&group| of(group));
            let reason = (self.why_not)(group);
            // Finding it out may have used the device.
            if let Err(error) = self.wait_after(reason.is_some()) {
                return self.stop(group, &error, of(group).chain(later()));
            }
            if let Some(reason) = reason {
                (self.on_event)(OperationEvent::Skipped { group, reason });
                continue;
            }
            for (done, operation) in of(group).enumerate() {
                tracing::info!(%group, operation = operation.name, "testing");
                let report = self.report(operation);
                let is_right = report.failure.is_none();
                (self.on_event)(OperationEvent::Done(report));
                if let Err(error) = self.wait_after(!is_right) {
                    return self.stop(group, &error, of(group).skip(done + 1).chain(later()));
                }
            }
        }
    }

    fn report(&self, operation: &Operation) -> OperationReport {
        let tolerance = if self.target.dtype == DType::F32 { F32_TOLERANCE } else { BF16_TOLERANCE };
        let tolerance = tolerance * operation.roundings;
        let &Operation { group, name, .. } = operation;
        let (error, milliseconds, failure) = match operation.run(&self.target) {
            Ok(outcome) => {
                let failure = outcome.difference.fault(tolerance);
                (Some(outcome.difference.error), Some(outcome.milliseconds), failure)
            }
            Err(error) => (None, None, Some(in_a_line(&error))),
        };
        OperationReport { group, name, error, tolerance, milliseconds, failure }
    }

    /// Whether the device still answers, after what may have been a fault: some faults break all later calls as well.
    fn wait_after(&self, is_fault: bool) -> Result<()> {
        if is_fault { (self.target.wait)() } else { Ok(()) }
    }

    fn stop<'b>(
        &mut self,
        group: OperationGroup,
        error: &candle_core::Error,
        left: impl Iterator<Item = &'b Operation>,
    ) {
        let left = left.map(|operation| (operation.group, operation.name)).collect();
        (self.on_event)(OperationEvent::Stopped { group, reason: in_a_line(error), left });
    }
}

/// An error without its backtrace.
fn in_a_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
