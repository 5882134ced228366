//! `bench kernels`: times single kernels, without a model.

use crate::config::Config;
use crate::engine::{KernelTimings, time_kernels};

/// Times the kernels of the first device, in the shapes of an image of this side in pixels, a multiple of 32. `on_timing` is called before
/// the first one and after each, with all timings so far.
///
/// # Errors
/// When the device is not available, or `on_timing` fails.
pub fn kernels(
    config: &Config,
    side: Option<u32>,
    on_timing: &mut dyn FnMut(&KernelTimings) -> anyhow::Result<()>,
) -> anyhow::Result<KernelTimings> {
    time_kernels(config.device.first(), config.engine.kernels, side, on_timing)
}
