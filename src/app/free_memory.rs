//! Memory that is free: of a GPU, or of this machine.

use crate::domain::device::DeviceChoice;
use crate::engine;

/// Bytes that are free on a device, and the device in words. `None` where that cannot be read.
pub(super) fn free_on(device: DeviceChoice) -> Option<(u64, String)> {
    match engine::free_bytes(device) {
        Ok(Some(bytes)) => Some((bytes as u64, format!("on {device}"))),
        // A device that does not respond is `doctor`'s to report.
        Ok(None) | Err(_) => {
            available_memory_bytes().map(|bytes| (bytes as u64, "in this machine's memory".to_owned()))
        }
    }
}

/// Bytes that processes of this machine can take without swapping.
pub(super) fn available_memory_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
