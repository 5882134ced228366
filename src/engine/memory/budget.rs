//! The memory plan of a checkpoint on a device that is open.

use candle_core::Device;

use super::plan::{MemoryPlan, TooLarge};
use crate::domain::device::EngineSettings;
use crate::domain::engine::EngineLimits;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::{device, storage};

/// The limits of one step on a device, and the most pixels of an image.
pub(crate) fn limits_of(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<(EngineLimits, usize), TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings)? else { return Ok((device::initial_limits(), usize::MAX)) };
    tracing::info!(%plan, "the device's memory");
    Ok((plan.limits, plan.pixels_max))
}

/// The plan. `None` where the device does not say how much memory it has: on the CPU.
pub(crate) fn plan_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<Option<MemoryPlan>, TooLarge> {
    let Some(free) = device::free_bytes_of(device) else { return Ok(None) };
    let dtype = device::dtype(device);
    let mut weights = checkpoint.weight_bytes(dtype);
    let linears = checkpoint.configs.transformer.block_linears();
    weights.transformer -= storage::bytes_saved(linears, dtype, settings.precision);
    let available = (free, device::initial_limits());
    MemoryPlan::new(&checkpoint.configs, weights, dtype, settings.offload, available).map(Some)
}
