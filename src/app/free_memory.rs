//! Memory that is free: of a GPU, or of this machine.

use crate::domain::device::DeviceChoice;
use crate::engine;
use crate::telemetry::process::available_bytes;

/// Bytes that are free on a device, and the device in words. `None` where that cannot be read.
pub(super) fn free_on(device: DeviceChoice) -> Option<(u64, String)> {
    match engine::free_bytes(device) {
        Ok(Some(bytes)) => Some((bytes as u64, format!("on {device}"))),
        // A device that does not respond is `doctor`'s to report.
        Ok(None) | Err(_) => available_bytes().map(|bytes| (bytes, "in this machine's memory".to_owned())),
    }
}
