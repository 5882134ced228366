//! What `doctor` asks of a device and a checkpoint before an engine is loaded.

use super::checkpoint::Checkpoint;
use super::error::LoadError;
use super::{device, memory, storage};
use crate::domain::device::{DeviceChoice, EngineSettings};
use crate::domain::model::ModelFiles;
use crate::domain::precision::Precision;

/// Checks whether a device supports a precision.
///
/// # Errors
/// When it does not.
pub fn check_precision(choice: DeviceChoice, precision: Precision) -> Result<(), LoadError> {
    let device = device::open(choice)?;
    Ok(storage::check_device(&device, precision)?)
}

/// How an engine with these settings would use its device's memory, in words; `None` on the CPU, where nothing is planned.
///
/// # Errors
/// When the device is not available; on any but the CPU, when the checkpoint is incomplete, or the model does not fit.
pub fn memory_plan(files: &ModelFiles, settings: &EngineSettings) -> Result<Option<String>, LoadError> {
    let device = device::open(settings.device)?;
    if device.is_cpu() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(files)?;
    Ok(memory::plan_for(&checkpoint, &device, settings)?.map(|plan| plan.to_string()))
}

/// How an engine with these settings would use the memory of a GPU with so many bytes free, in words.
///
/// # Errors
/// When the checkpoint is incomplete, or the model does not fit.
pub fn memory_plan_within(files: &ModelFiles, free: usize, settings: &EngineSettings) -> Result<String, LoadError> {
    let checkpoint = Checkpoint::open(files)?;
    Ok(memory::plan_within(&checkpoint, free, device::GPU_DTYPE, settings)?.to_string())
}
