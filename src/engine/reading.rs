//! The duration of loading, part by part, and of reading alone.

use std::time::Instant;

use super::checkpoint::{BUFFER_BYTES, Checkpoint, readers};
use super::error::LoadError;
use crate::domain::model::ModelFiles;

/// The durations of the parts of loading, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadTimes {
    /// Until the device was open.
    pub device_seconds: f64,
    /// Until the checkpoint's files were open and checked as well; this begins together with opening the device.
    pub check_seconds: f64,
    /// Until all weights were on the device.
    pub weights_seconds: f64,
    /// Bytes read from the files for them.
    pub weights_bytes: usize,
    /// Until the first map for previews was fitted: the decoder's first run, in which the driver loads kernels as well.
    pub preview_seconds: f64,
}

/// The duration of reading a checkpoint's weights without using them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Threads that read.
    pub readers: usize,
    /// Bytes that each reads at a time.
    pub buffer_bytes: usize,
    /// Bytes read.
    pub bytes: usize,
    /// From the first byte to the last.
    pub seconds: f64,
}

/// Reads all weights as for a CUDA device, and drops them: the throughput of disk or page cache.
///
/// # Errors
/// When the checkpoint is incomplete, or cannot be read.
pub fn read_weights(files: &ModelFiles) -> Result<Reading, LoadError> {
    let checkpoint = Checkpoint::open(files)?;
    let (readers, buffer_bytes) = (readers(), BUFFER_BYTES);
    let started = Instant::now();
    let bytes = checkpoint.read_and_drop()?;
    Ok(Reading { readers, buffer_bytes, bytes, seconds: started.elapsed().as_secs_f64() })
}
