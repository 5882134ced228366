//! What a model takes of a device's memory: the plan of `plan.rs`, for a device that is there.

use candle_core::Device;

use super::loader::Checkpoint;
use super::plan::MemoryPlan;
use super::{LoadError, TooLarge, device, precision};
use crate::domain::device::EngineSettings;
use crate::domain::engine::EngineLimits;
use crate::domain::model::ModelFiles;

/// What an engine with these settings would make of its device's memory, in words; `None` on the CPU, where nothing is
/// planned.
///
/// # Errors
/// When the device cannot be had; on any but the CPU, when the checkpoint is not whole, or the model does not fit.
pub fn memory_plan(files: &ModelFiles, settings: &EngineSettings) -> Result<Option<String>, LoadError> {
    let device = device::open(settings.device)?;
    if device.is_cpu() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(files)?;
    Ok(plan_for(&checkpoint, &device, settings)?.map(|plan| plan.to_string()))
}

/// What one step may hold on a device, and most pixels of an image.
pub(super) fn limits_of(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<(EngineLimits, usize), TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings)? else { return Ok((device::initial_limits(), usize::MAX)) };
    tracing::info!(%plan, "the device's memory");
    Ok((plan.limits, plan.pixels_max))
}

fn plan_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<Option<MemoryPlan>, TooLarge> {
    let Some(free) = device::free_bytes_of(device) else { return Ok(None) };
    let dtype = device::dtype(device);
    let mut weights = checkpoint.weight_bytes(dtype);
    weights.transformer -= precision::bytes_saved(&checkpoint.configs.transformer, dtype, settings.precision);
    let room = (free, device::initial_limits());
    MemoryPlan::new(&checkpoint.configs, weights, dtype, settings.offload, room).map(Some)
}
