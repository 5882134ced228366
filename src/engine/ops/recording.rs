//! Work of a CUDA device that is recorded once and repeated as a whole: one launch instead of one for each operation.

use candle_core::{Device, Result};

use super::cuda;

/// Recorded work. It reads and writes the memory that it was recorded with, which must outlive it.
pub(crate) struct Recording(cuda::graph::Graph);

impl Recording {
    /// Records the work that `work` enqueues on a device, without running it. All tensors that `work` makes must be dropped when it
    /// returns, and it must have run before.
    ///
    /// # Errors
    /// When `work` fails, or moves numbers between host and device, or the device does not record: the CPU does not. Then nothing
    /// was enqueued.
    pub(crate) fn of(device: &Device, work: &dyn Fn() -> Result<()>) -> Result<Self> {
        cuda::graph::record(device, work).map(Self)
    }

    /// Enqueues the work once more.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn repeat(&self) -> Result<()> {
        self.0.launch()
    }
}
