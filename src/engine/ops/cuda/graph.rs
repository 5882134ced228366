//! A device's work as a CUDA graph: recorded once, launched as a whole.

#![expect(unsafe_code, reason = "the driver's memory for graphs is trimmed through its C interface")]

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream};
use candle_core::{Device, Result, bail};

/// Recorded work. It reads and writes the memory that it was recorded with, which must outlive it.
pub(in crate::engine::ops) struct Graph {
    /// Always there until it is dropped.
    graph: Option<CudaGraph>,
    stream: Arc<CudaStream>,
}

impl Graph {
    /// Enqueues the work once more.
    pub(in crate::engine::ops) fn launch(&self) -> Result<()> {
        match &self.graph {
            Some(graph) => graph.launch().w(),
            None => bail!("a graph that was dropped"),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        drop(self.graph.take());
        // Graphs have memory of their own, which the driver keeps for the next one. An error here has no remedy.
        // SAFETY: the device is open, and memory that is in use stays.
        let _ = unsafe { sys::cuDeviceGraphMemTrim(self.stream.context().cu_device()) };
    }
}

/// Records the work that `work` enqueues, without running it. All memory that `work` allocates must be freed when it returns, and
/// everything that is loaded at its first use be there.
///
/// # Errors
/// When `work` fails, or does what cannot be recorded: uploads, downloads, and waiting. Then nothing was enqueued.
pub(in crate::engine::ops) fn record(device: &Device, work: &dyn Fn() -> Result<()>) -> Result<Graph> {
    let Device::Cuda(device) = device else { bail!("only a CUDA device records its work") };
    let stream = device.cuda_stream();
    // During a capture candle then refuses uploads of what it does not have already, and nothing has let it have any: a recorded
    // upload would be repeated from memory of the host that is gone.
    let _refuses_uploads = device.enable_cuda_graph_htod_cache();
    // Calls of other threads, which have streams of their own, are not checked.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let capture = Capture { stream: &stream, is_open: true };
    let outcome = work();
    let graph = capture.end();
    outcome?;
    Ok(Graph { graph: Some(graph?), stream: stream.clone() })
}

/// A stream that records. It ends with a panic, too: a stream that records for ever runs nothing.
struct Capture<'a> {
    stream: &'a Arc<CudaStream>,
    is_open: bool,
}

impl Capture<'_> {
    fn end(mut self) -> Result<CudaGraph> {
        self.is_open = false;
        match end_capture(self.stream)? {
            Some(graph) => Ok(graph),
            None => bail!("the driver has recorded nothing"),
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // The panic says what is wrong.
            drop(end_capture(self.stream));
        }
    }
}

/// Ends a capture. Memory that is freed in a capture that broke leaves an error, which must neither keep it from ending nor appear
/// at a later call.
fn end_capture(stream: &Arc<CudaStream>) -> Result<Option<CudaGraph>> {
    let before = stream.context().check_err();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    let after = stream.context().check_err();
    before.w()?;
    let graph = graph.w()?;
    after.w()?;
    Ok(graph)
}
