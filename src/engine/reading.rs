//! What loading takes, part by part, and what reading alone takes.

use std::time::Instant;

use super::LoadError;
use super::loader::{self, Checkpoint};
use crate::domain::model::ModelFiles;

/// What the parts of loading took, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadTimes {
    /// Until the device was open.
    pub device_seconds: f64,
    /// Until the checkpoint's files were open as well, and all that is known of them compared; begun beside the device.
    pub check_seconds: f64,
    /// Until all weights were on the device.
    pub weights_seconds: f64,
    /// What was read of the files for them.
    pub weights_bytes: usize,
    /// Until there was a map for previews: the decoder's first run, which also has the driver load kernels.
    pub preview_seconds: f64,
}

/// What reading a checkpoint's weights takes where nothing is done with them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Threads that read.
    pub readers: usize,
    /// What each reads at one time.
    pub buffer_bytes: usize,
    /// What was read.
    pub bytes: usize,
    /// From the first byte to the last.
    pub seconds: f64,
}

/// Reads all weights as when they are loaded onto a CUDA device, and keeps nothing of them: what disk or page cache give.
///
/// # Errors
/// When the checkpoint is not whole, or cannot be read.
pub fn read_weights(files: &ModelFiles) -> Result<Reading, LoadError> {
    let checkpoint = Checkpoint::open(files)?;
    let (readers, buffer_bytes) = loader::reading();
    let started = Instant::now();
    let bytes = checkpoint.read_to_nowhere()?;
    Ok(Reading { readers, buffer_bytes, bytes, seconds: started.elapsed().as_secs_f64() })
}
