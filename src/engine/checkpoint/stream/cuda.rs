//! A CUDA device as a destination: pinned memory, copies on the engine's stream or on one beside it, and an event behind each.
//!
//! The driver copies out of pinned memory asynchronously (`cuMemcpyHtoDAsync`); other memory it first copies into pinned
//! memory of its own, on the calling thread. Only the engine's thread uses the streams, so that the order of their work is
//! known; any thread can wait for events.
//!
//! Copies beside the engine's stream run while it computes. Their tensors are allocated and freed on that other stream. The
//! engine's stream waits for a tensor's copies when it is given; the other one waits for the engine's work before memory is
//! freed there (`release`).

#![expect(unsafe_code, reason = "the driver makes the asynchronous copies")]

use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::{BackendDevice as _, BackendStorage as _};
use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtrMut as _, PinnedHostSlice, result, sys,
};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::Destination;
use crate::engine::checkpoint::recipe::Recipe;

/// The memory of a device.
pub(in crate::engine::checkpoint) struct CudaMemory {
    device: CudaDevice,
    /// Where copies are made, if not on the engine's stream.
    beside: Option<Arc<CudaStream>>,
}

/// Pinned memory, and an event behind the last copy out of it.
pub(in crate::engine::checkpoint) struct Pinned {
    bytes: PinnedHostSlice<u8>,
    copied: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The memory must outlive the copies. A device that fails here has reported an error at the copies, too.
        let _ = self.copied.synchronize();
    }
}

impl Destination for CudaMemory {
    type Buffer = Pinned;
    type Target = CudaStorage;

    fn is_at(&self, device: &Device) -> bool {
        device.location() == self.device.location()
    }

    fn buffer(&self, bytes: usize) -> Result<Pinned> {
        let stream = self.device.cuda_stream();
        let context = stream.context();
        // Without `WRITECOMBINED`: the kernel fills it in a read, whose speed past the caches is not known.
        // SAFETY: only bytes that a reader has filled are copied.
        let bytes = unsafe { context.alloc_pinned_with_flags(bytes, 0) }.w()?;
        // A waiting thread sleeps, and leaves the core to the others.
        let copied = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?;
        Ok(Pinned { bytes, copied })
    }

    fn target(&self, recipe: &Recipe) -> Result<CudaStorage> {
        let Some(beside) = &self.beside else {
            // SAFETY: copies on the same stream write every byte before any other use of the memory.
            return unsafe { self.device.alloc_uninit(&Shape::from(recipe.shape.as_slice()), recipe.dtype) };
        };
        let (numbers, device) = (recipe.shape.iter().product(), self.device.clone());
        // SAFETY: copies on the same stream write every byte, and the engine's stream waits for them in `tensor`.
        unsafe {
            match recipe.dtype {
                DType::BF16 => Ok(CudaStorage::wrap_cuda_slice(beside.alloc::<bf16>(numbers).w()?, device)),
                DType::F16 => Ok(CudaStorage::wrap_cuda_slice(beside.alloc::<f16>(numbers).w()?, device)),
                DType::F32 => Ok(CudaStorage::wrap_cuda_slice(beside.alloc::<f32>(numbers).w()?, device)),
                other => bail!("weights are not kept as {other:?}"),
            }
        }
    }

    fn fill(
        &self,
        buffer: &mut Pinned,
        write: &mut dyn FnMut(&mut [u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("the device failed while weights were copied to it: {error}");
        buffer.copied.synchronize().map_err(|error| failed(&error))?;
        write(buffer.bytes.as_mut_slice().map_err(|error| failed(&error))?)
    }

    fn copy(&self, buffer: &mut Pinned, from: Range<usize>, target: &mut CudaStorage, at: usize) -> Result<()> {
        match target.dtype() {
            DType::BF16 => self.copy_into(buffer, from, target.as_cuda_slice_mut::<bf16>()?, at),
            DType::F16 => self.copy_into(buffer, from, target.as_cuda_slice_mut::<f16>()?, at),
            DType::F32 => self.copy_into(buffer, from, target.as_cuda_slice_mut::<f32>()?, at),
            DType::U8 => self.copy_into(buffer, from, target.as_cuda_slice_mut::<u8>()?, at),
            other => bail!("weights are not kept as {other:?}"),
        }
    }

    fn tensor(&self, target: CudaStorage, recipe: &Recipe) -> Result<Tensor> {
        if let Some(beside) = &self.beside {
            self.device.cuda_stream().join(beside).w()?;
        }
        let shape = recipe.shape.as_slice();
        Ok(Tensor::from_storage(Storage::Cuda(target), shape, BackpropOp::none(), false))
    }

    fn release(&self) -> Result<()> {
        match &self.beside {
            Some(beside) => beside.join(&self.device.cuda_stream()).w(),
            None => Ok(()),
        }
    }
}

impl CudaMemory {
    /// With copies on the engine's stream.
    pub(in crate::engine::checkpoint) fn new(device: CudaDevice) -> Self {
        Self { device, beside: None }
    }

    /// With copies while the engine's stream computes.
    ///
    /// # Errors
    /// When the device has no memory for another stream.
    pub(in crate::engine::checkpoint) fn beside(device: CudaDevice) -> Result<Self> {
        let beside = device.cuda_stream().context().new_stream().w()?;
        Ok(Self { device, beside: Some(beside) })
    }

    /// The stream of the copies.
    fn copies(&self) -> Arc<CudaStream> {
        self.beside.clone().unwrap_or_else(|| self.device.cuda_stream())
    }

    fn copy_into<T>(&self, buffer: &Pinned, from: Range<usize>, target: &mut CudaSlice<T>, at: usize) -> Result<()> {
        let stream = self.copies();
        if at + from.len() > target.num_bytes() {
            bail!("{} bytes from {at} on do not fit into {}", from.len(), target.num_bytes());
        }
        let bytes = buffer.bytes.as_slice().w()?;
        let (start, _written) = target.device_ptr_mut(&stream);
        // SAFETY: the range is inside the target, as checked above, which is freed on this same stream. The source is neither
        // written nor freed before the event behind the copy, which is recorded below.
        unsafe { result::memcpy_htod_async(start + at as u64, &bytes[from], stream.cu_stream()) }.w()?;
        let recorded = buffer.copied.record(&stream);
        if recorded.is_err() {
            // Nothing would wait for the copy. An error of this adds nothing to the one above.
            let _ = stream.synchronize();
        }
        recorded.w()
    }
}
