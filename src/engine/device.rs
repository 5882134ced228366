//! Which device an engine draws on, and what fits there.

use candle_core::{DType, Device};

use crate::domain::device::DeviceChoice;
use crate::domain::engine::EngineLimits;

/// A device that was asked for and cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error(
        "`{0}` was asked for, but this program was built without CUDA: build with `--features cuda`, or use `--device cpu`"
    )]
    NotBuilt(DeviceChoice),
    /// CUDA is built in, but the device does not answer.
    #[error("`{choice}` cannot be used: {reason}; use `--device cpu` to draw without it")]
    Unavailable {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the driver says.
        reason: String,
    },
}

/// Opens the device. `Auto` falls back to the CPU and says so in the log.
pub(crate) fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt(choice)),
        DeviceChoice::Cuda(ordinal) => cuda::open(ordinal)
            .map_err(|error| DeviceError::Unavailable { choice, reason: first_line(&error.to_string()) }),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => match cuda::open(0) {
            Ok(device) => Ok(device),
            Err(error) => {
                tracing::info!(reason = first_line(&error.to_string()), "no CUDA device, drawing on the CPU");
                Ok(Device::Cpu)
            }
        },
    }
}

/// Whether a device can be opened, in words for `doctor`.
///
/// # Errors
/// When it cannot.
pub fn probe(choice: DeviceChoice) -> Result<String, DeviceError> {
    open(choice).map(|device| describe(&device))
}

/// A device in words.
pub(crate) fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
        candle_core::DeviceLocation::Cuda { gpu_id } => match cuda::name_and_free_bytes(device) {
            Some((name, free)) => format!("cuda:{gpu_id}, {name}, {:.1} GiB free", free as f64 / f64::from(1 << 30)),
            None => format!("cuda:{gpu_id}"),
        },
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// Weights and activations: bf16 where the hardware multiplies it, f32 on the CPU, which does not.
pub(crate) fn dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::BF16 }
}

/// Images held at a time; their latents are small, so this bounds waiting rather than memory.
const IMAGES_MAX: usize = 32;

/// Tokens in one step: the largest single request (2048×2048 pixels, 512 text tokens, two passes), so that any request
/// fits alone and many small ones fit together.
const STEP_TOKENS_MAX: usize = 2 * (128 * 128 + 512);

/// What one step may hold before anything is known about the device.
pub(crate) fn initial_limits() -> EngineLimits {
    EngineLimits { images_max: IMAGES_MAX, step_tokens_max: STEP_TOKENS_MAX }
}

/// What one step may hold after `tokens` were too many: half of them.
pub(crate) fn limits_after_out_of_memory(limits: EngineLimits, tokens: usize) -> EngineLimits {
    EngineLimits { step_tokens_max: limits.step_tokens_max.min(tokens / 2).max(1), ..limits }
}

/// Bytes of a device's memory that nobody has; `None` for the CPU, whose memory is the machine's.
///
/// # Errors
/// When the device cannot be had.
pub fn free_bytes(choice: DeviceChoice) -> Result<Option<usize>, DeviceError> {
    open(choice).map(|device| free_bytes_of(&device))
}

/// [`free_bytes`] of a device that is open.
pub(crate) fn free_bytes_of(device: &Device) -> Option<usize> {
    cuda::name_and_free_bytes(device).map(|(_, free)| free)
}

/// What generation a CUDA device is of; `None` for the CPU, or where the driver does not say.
pub(crate) fn compute_capability(device: &Device) -> Option<(i32, i32)> {
    cuda::compute_capability(device)
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys};
    use candle_core::{Device, Result};

    /// Opens a device, on a stream of the calling thread.
    pub(super) fn open(ordinal: usize) -> Result<Device> {
        let device = Device::new_cuda(ordinal)?;
        if let Device::Cuda(cuda) = &device {
            // Each allocation would come with two events, to be made and destroyed, that nobody waits for.
            // SAFETY: everything of this context is done on one stream, that of the engine's thread: memory is given back
            // on it behind all that uses it. Whoever brings in another one orders the two with events of their own.
            #[expect(unsafe_code, reason = "what the events would see to is seen to by the one stream")]
            unsafe {
                cuda.disable_event_tracking();
            }
            keep_freed_memory(cuda.cuda_stream().context())?;
        }
        Ok(device)
    }

    /// What a step frees the next one takes again: without this the driver would give it back at each synchronisation,
    /// and map it anew.
    fn keep_freed_memory(context: &CudaContext) -> Result<()> {
        if !context.has_async_alloc() {
            return Ok(());
        }
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        // SAFETY: the device exists, `pool` is written before it is read, and the attribute's value is a u64.
        #[expect(unsafe_code, reason = "cudarc has no safe call for it")]
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().w()?;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().w()?;
        }
        Ok(())
    }

    /// What the driver calls a device, and how much of its memory is free.
    pub(super) fn name_and_free_bytes(device: &Device) -> Option<(String, usize)> {
        let Device::Cuda(cuda) = device else { return None };
        let stream = cuda.cuda_stream();
        let (free, _) = stream.context().mem_get_info().ok()?;
        Some((stream.context().name().unwrap_or_default(), free))
    }

    pub(super) fn compute_capability(device: &Device) -> Option<(i32, i32)> {
        let Device::Cuda(cuda) = device else { return None };
        cuda.cuda_stream().context().compute_capability().ok()
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use candle_core::{Device, Result};

    pub(super) fn open(ordinal: usize) -> Result<Device> {
        Device::new_cuda(ordinal)
    }

    pub(super) fn name_and_free_bytes(_: &Device) -> Option<(String, usize)> {
        None
    }

    pub(super) fn compute_capability(_: &Device) -> Option<(i32, i32)> {
        None
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
