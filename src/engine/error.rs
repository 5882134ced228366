//! Why an engine could not be built.

use super::checkpoint::CheckpointError;
use super::device::DeviceError;
use super::memory::TooLarge;
use super::storage::{AsStoredError, PrecisionError};

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The checkpoint is incomplete.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device's memory does not suffice.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The device or the model does not support the precision.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The device does not keep weights as they are stored.
    #[error(transparent)]
    AsStored(#[from] AsStoredError),
    /// The weights could not be copied to the device.
    #[error("the weights could not be loaded: {0}")]
    Weights(#[from] candle_core::Error),
}
