//! What stands in where CUDA is not built.

use candle_core::{Device, Result};

pub(super) fn open(ordinal: usize) -> Result<Device> {
    Device::new_cuda(ordinal)
}

pub(super) fn name_unopened(ordinal: usize) -> Result<String> {
    open(ordinal).map(|_| String::new())
}

pub(super) fn capability_unopened(ordinal: usize) -> Result<(i32, i32)> {
    open(ordinal).map(|_| (0, 0))
}

pub(super) fn name_and_free_bytes(_: &Device) -> Option<(String, usize)> {
    None
}

pub(super) fn most_used_bytes(_: &Device) -> Option<usize> {
    None
}

pub(super) fn compute_capability(_: &Device) -> Option<(i32, i32)> {
    None
}
