//! What `doctor` asks of a device and a checkpoint before an engine is loaded.

use super::checkpoint::Checkpoint;
use super::device::{self, DeviceError, OpenDevice};
use super::error::LoadError;
use super::self_test::{self, OperationEvent};
use super::storage::PrecisionError;
use super::vision::VisionFiles;
use super::{memory, storage};
use crate::domain::device::{DeviceChoice, EngineSettings, Kernels};
use crate::domain::model::ModelFiles;
use crate::domain::operation_group::OperationGroup;
use crate::domain::precision::Precision;

/// A device that is open for as long as it is examined. Opening one again for each question takes seconds, and memory of the
/// device.
pub struct ExaminedDevice(OpenDevice);

impl ExaminedDevice {
    /// Opens a device.
    ///
    /// # Errors
    /// When it is not available.
    pub fn open(choice: DeviceChoice) -> Result<Self, DeviceError> {
        device::open(choice).map(Self)
    }

    /// The device in words, with what runs on it.
    #[must_use]
    pub fn description(&self) -> String {
        device::description(&self.0)
    }

    /// Whether it is the CPU, where no memory is planned.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.0.is_cpu()
    }

    /// [`super::run_operations`] on this device.
    pub fn run_operations(
        &self,
        kernels: Kernels,
        groups: &[OperationGroup],
        on_event: &mut dyn FnMut(OperationEvent),
    ) {
        self_test::run_operations_on(&self.0, kernels, groups, on_event);
    }

    /// Checks whether the device supports a precision.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_precision(&self, precision: Precision) -> Result<(), PrecisionError> {
        storage::check_device(&self.0, precision)
    }

    /// How an engine with these settings would use the device's memory, in words; `None` on the CPU, where nothing is planned.
    ///
    /// # Errors
    /// On any but the CPU, when the checkpoint is incomplete, or the model does not fit.
    pub fn memory_plan(&self, files: &ModelFiles, settings: &EngineSettings) -> Result<Option<String>, LoadError> {
        if self.is_cpu() {
            return Ok(None);
        }
        let checkpoint = Checkpoint::open(files)?;
        let plan = memory::plan_for(&checkpoint, &self.0, settings, bytes_beside(files, &checkpoint)?)?;
        Ok(plan.map(|plan| format!("{plan}{}", kept_in_fp8(&checkpoint, settings))))
    }

    /// The ways to keep a model on this device, the fastest first, and whether each fits; none on the CPU.
    ///
    /// # Errors
    /// On any but the CPU, when the checkpoint is incomplete.
    pub fn memory_arrangements(&self, files: &ModelFiles, settings: &EngineSettings) -> Result<Vec<String>, LoadError> {
        match device::free_bytes_of(&self.0) {
            Some(free) => memory_arrangements_within(files, free, settings),
            None => Ok(Vec::new()),
        }
    }
}

/// How an engine with these settings would use the memory of a GPU with so many bytes free, in words.
///
/// # Errors
/// When the checkpoint is incomplete, the model does not fit, or no GPU supports the precision.
pub fn memory_plan_within(files: &ModelFiles, free: usize, settings: &EngineSettings) -> Result<String, LoadError> {
    storage::check_gpu(settings.precision)?;
    let checkpoint = Checkpoint::open(files)?;
    let free = free.saturating_sub(bytes_beside(files, &checkpoint)?);
    let plan = memory::plan_within(&checkpoint, free, device::GPU_DTYPE, settings)?;
    Ok(format!("{plan}{}", kept_in_fp8(&checkpoint, settings)))
}

/// Bytes on a GPU of what is loaded beside a checkpoint.
fn bytes_beside(files: &ModelFiles, checkpoint: &Checkpoint) -> Result<usize, LoadError> {
    let vision = VisionFiles::open(files, checkpoint.configs.transformer.joint_attention_dim)?;
    Ok(vision.bytes_beside(device::GPU_DTYPE, false))
}

/// What else is to be said of a plan where fp8 keeps weights of the file.
fn kept_in_fp8(checkpoint: &Checkpoint, settings: &EngineSettings) -> String {
    storage::words_for_e4m3(settings.weights, settings.precision, checkpoint.block_linears_in_e4m3())
        .map_or_else(String::new, |words| format!("; {words}"))
}

/// The ways to keep a model on a GPU with so many bytes free, the fastest first, and whether each fits.
///
/// # Errors
/// When the checkpoint is incomplete.
pub fn memory_arrangements_within(
    files: &ModelFiles,
    free: usize,
    settings: &EngineSettings,
) -> Result<Vec<String>, LoadError> {
    let checkpoint = Checkpoint::open(files)?;
    let free = free.saturating_sub(bytes_beside(files, &checkpoint)?);
    Ok(memory::arrangements_within(&checkpoint, free, device::GPU_DTYPE, settings))
}
