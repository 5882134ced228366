//! The device of an engine: how it is opened, its limits, and what its errors mean for the jobs.

mod built_for;
#[cfg(not(feature = "cuda"))]
mod without_cuda;

use std::ops::Deref;

use candle_core::{DType, Device};

use crate::domain::device::DeviceChoice;
use crate::domain::engine::{EngineError, EngineLimits};
use built_for::{BUILT_FOR, Code, code_for};
#[cfg(not(feature = "cuda"))]
use without_cuda as cuda;

/// A device that is not available.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error(
        "`{0}` was asked for, but this program was built without CUDA: build with `--features cuda`, or use `--device cpu`"
    )]
    NotBuilt(DeviceChoice),
    /// CUDA is built in, but the device does not answer.
    #[error("`{choice}` cannot be used: {reason}; use `--device cpu` to run without it")]
    Unavailable {
        /// The requested device.
        choice: DeviceChoice,
        /// The driver's message.
        reason: String,
    },
    /// The program has no kernels that run there.
    #[error(
        "`{choice}` cannot be used: this program is built for compute capability {built_for}, and the device has {}.{}; build \
         with `CUDA_COMPUTE_CAP=80` for all devices from 8.0 on, or use `--device cpu`",
        capability.0, capability.1
    )]
    NotBuiltFor {
        /// The requested device.
        choice: DeviceChoice,
        /// What the program has kernels for.
        built_for: &'static str,
        /// The device's compute capability.
        capability: (i32, i32),
    },
}

/// Opens the device. `Auto` falls back to the CPU and says so in the log.
pub(crate) fn open(choice: DeviceChoice) -> Result<OpenDevice, DeviceError> {
    opened(choice).map(OpenDevice)
}

fn opened(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt(choice)),
        DeviceChoice::Cuda(ordinal) => open_cuda(choice, ordinal),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => match open_cuda(DeviceChoice::Cuda(0), 0) {
            Err(DeviceError::Unavailable { reason, .. }) => {
                tracing::info!(reason, "no CUDA device, running on the CPU");
                Ok(Device::Cpu)
            }
            Err(error) => {
                tracing::warn!(%error, "running on the CPU");
                Ok(Device::Cpu)
            }
            opened => opened,
        },
    }
}

fn open_cuda(choice: DeviceChoice, ordinal: usize) -> Result<Device, DeviceError> {
    let opened = cuda::open(ordinal);
    let device = opened.map_err(|error| DeviceError::Unavailable { choice, reason: first_line(&error.to_string()) })?;
    match compute_capability(&device) {
        Some(capability) => check_built_for(choice, BUILT_FOR, capability).map(|()| device),
        None => Ok(device),
    }
}

/// Checks that the program has kernels for a device. The driver's own message names neither.
fn check_built_for(choice: DeviceChoice, built_for: &'static str, capability: (i32, i32)) -> Result<(), DeviceError> {
    match code_for(built_for, capability) {
        Some(_) => Ok(()),
        None => Err(DeviceError::NotBuiltFor { choice, built_for, capability }),
    }
}

/// A device in words, without opening it: that takes memory of the device, and a second.
///
/// # Errors
/// When it is not there.
pub fn name(choice: DeviceChoice) -> Result<String, DeviceError> {
    let ordinal = match choice {
        DeviceChoice::Cpu => return Ok(describe(&Device::Cpu)),
        DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => return Err(DeviceError::NotBuilt(choice)),
        DeviceChoice::Cuda(ordinal) => ordinal,
        DeviceChoice::Auto => 0,
    };
    match cuda::name_unopened(ordinal) {
        Ok(name) => Ok(format!("cuda:{ordinal}, {name}")),
        Err(_) if choice == DeviceChoice::Auto => Ok(describe(&Device::Cpu)),
        Err(error) => Err(DeviceError::Unavailable { choice, reason: first_line(&error.to_string()) }),
    }
}

/// The compute capability of a CUDA device, without opening it; `None` for the CPU, or where it is not there.
pub(crate) fn capability_unopened(choice: DeviceChoice) -> Option<(i32, i32)> {
    match choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(ordinal) => cuda::capability_unopened(ordinal).ok(),
        DeviceChoice::Auto => cuda::capability_unopened(0).ok(),
    }
}

/// A device in words, with what runs on it.
pub(crate) fn description(device: &Device) -> String {
    let kernels = compute_capability(device).map(kernels_for).unwrap_or_default();
    format!("{}{kernels}", describe(device))
}

/// What runs on a device of this compute capability, in words.
fn kernels_for(capability: (i32, i32)) -> String {
    let code = match code_for(BUILT_FOR, capability) {
        Some(Code::Machine) => "machine code",
        Some(Code::Ptx) => "PTX, which the driver compiles when it is first used",
        None => "none",
    };
    format!(", compute capability {}.{}, kernels: {code}", capability.0, capability.1)
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
    if device.is_cpu() { DType::F32 } else { GPU_DTYPE }
}

/// [`dtype`] of a GPU.
pub(crate) const GPU_DTYPE: DType = DType::BF16;

/// Maximum images in slots. Their latents are small, so this bounds waiting rather than memory.
const IMAGES_MAX: usize = 32;

/// Tokens in one step: the largest single request (2048×2048 pixels, 512 text tokens, two passes), so that any request
/// fits alone and many small ones fit in a batch.
const STEP_TOKENS_MAX: usize = 2 * (128 * 128 + 512);

/// The limits of one step before anything is known about the device.
pub(crate) fn initial_limits() -> EngineLimits {
    EngineLimits { images_max: IMAGES_MAX, step_tokens_max: STEP_TOKENS_MAX }
}

/// The limits of one step after `tokens` were too many: half of them.
pub(crate) fn limits_after_out_of_memory(limits: EngineLimits, tokens: usize) -> EngineLimits {
    EngineLimits { step_tokens_max: limits.step_tokens_max.min(tokens / 2).max(1), ..limits }
}

/// Free bytes of a device's memory; `None` for the CPU, whose memory is the machine's.
///
/// # Errors
/// When the device is not available.
pub fn free_bytes(choice: DeviceChoice) -> Result<Option<usize>, DeviceError> {
    open(choice).map(|device| free_bytes_of(&device))
}

/// [`free_bytes`] of a device that is open.
pub(crate) fn free_bytes_of(device: &Device) -> Option<usize> {
    cuda::name_and_free_bytes(device).map(|(_, free)| free)
}

/// The most bytes that this process has used of a device's memory at a time; `None` for the CPU.
pub(crate) fn most_used_bytes(device: &Device) -> Option<usize> {
    cuda::most_used_bytes(device)
}

/// The compute capability of a CUDA device; `None` for the CPU, or where the driver does not report it.
pub(crate) fn compute_capability(device: &Device) -> Option<(i32, i32)> {
    cuda::compute_capability(device)
}

/// Errors of the driver that stay: "This leaves the process in an inconsistent state and any further CUDA work will return the
/// same error. To continue using CUDA, the process must be terminated and relaunched" (CUDA Driver API, `CUresult`).
const STICKY: [&str; 15] = [
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_EXTERNAL_DEVICE",
];

/// Sorts an error of candle by what the queue can do about it.
#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
pub(crate) fn device_error(error: candle_core::Error) -> EngineError {
    failure(error.to_string())
}

/// Sorts a device's error by what the queue can do about it. candle reports errors only as text: the driver's, with the name
/// of its code, or that of a library that needed workspace.
#[must_use]
pub fn failure(text: String) -> EngineError {
    if STICKY.into_iter().any(|code| text.contains(code)) {
        EngineError::DeviceLost(text)
    } else if ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"].into_iter().any(|words| text.contains(words)) {
        EngineError::OutOfMemory(text)
    } else {
        EngineError::Fatal(text)
    }
}

/// An open device. When it is closed, so are this thread's libraries on it: they would keep the driver's context, and with it
/// an error that the next engine must not meet.
pub(crate) struct OpenDevice(Device);

impl Deref for OpenDevice {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.0
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        super::ops::close_libraries(&self.0);
    }
}

/// Memory that a device can still give: freed memory stays with the pool of this process, which gives it out again.
#[cfg(any(feature = "cuda", test))]
fn usable_bytes(free: usize, pool_reserved: usize, pool_used: usize) -> usize {
    free + pool_reserved.saturating_sub(pool_used)
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
    use candle_core::{Device, Result};

    /// Opens a device, on a stream of its own: a tensor that another thread drops is freed on it, too.
    pub(super) fn open(ordinal: usize) -> Result<Device> {
        let device = Device::new_cuda_with_stream(ordinal)?;
        if let Device::Cuda(cuda) = &device {
            // Without this each allocation creates and destroys two events that nothing waits for.
            // SAFETY: an engine computes on one stream: memory is freed on it behind all work that uses it. Blocks that are
            // read for each step are copied on others, which `checkpoint/stream/cuda.rs` orders with events of its own.
            #[expect(unsafe_code, reason = "the streams' order is what the events would give")]
            unsafe {
                cuda.disable_event_tracking();
            }
            let stream = cuda.cuda_stream();
            // A thread that waits for a step sleeps. By default it spins, and takes a core from the encoders.
            stream.context().set_blocking_synchronize().w()?;
            keep_freed_memory(stream.context())?;
        }
        Ok(device)
    }

    /// A device that need not be open.
    fn handle(ordinal: usize) -> Result<sys::CUdevice> {
        result::init().w()?;
        result::device::get(ordinal as i32).w()
    }

    pub(super) fn name_unopened(ordinal: usize) -> Result<String> {
        let device = handle(ordinal)?;
        // SAFETY: the device exists.
        #[expect(unsafe_code, reason = "cudarc has no safe call without a context")]
        let bytes = unsafe { result::device::total_mem(device) }.w()?;
        Ok(format!("{}, {:.1} GiB", result::device::get_name(device).w()?, bytes as f64 / f64::from(1 << 30)))
    }

    pub(super) fn capability_unopened(ordinal: usize) -> Result<(i32, i32)> {
        use sys::CUdevice_attribute_enum as Attribute;

        let device = handle(ordinal)?;
        // SAFETY: the device exists.
        #[expect(unsafe_code, reason = "cudarc has no safe call without a context")]
        let number = |attribute| unsafe { result::device::get_attribute(device, attribute) }.w();
        let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((major, number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    }

    /// Keeps freed memory for the next step. By default the driver unmaps it at each synchronization, and maps it anew.
    fn keep_freed_memory(context: &CudaContext) -> Result<()> {
        if !context.has_async_alloc() {
            return Ok(());
        }
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        // SAFETY: the device exists, `pool` is written before it is read, and the attribute's value is a u64.
        #[expect(unsafe_code, reason = "cudarc has no safe call for this")]
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().w()?;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result().w()?;
        }
        Ok(())
    }

    /// Numbers of bytes that the default pool of this process counts.
    fn pool_bytes<const COUNT: usize>(
        context: &CudaContext,
        attributes: [sys::CUmemPool_attribute_enum; COUNT],
    ) -> Option<[usize; COUNT]> {
        if !context.has_async_alloc() {
            return None;
        }
        let (mut pool, mut counted) = (std::ptr::null_mut(), [0; COUNT]);
        // SAFETY: the device exists, `pool` is written before it is read, and these attributes' values are u64.
        #[expect(unsafe_code, reason = "cudarc has no safe call for this")]
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().ok()?;
            for (attribute, counted) in attributes.into_iter().zip(&mut counted) {
                let mut bytes = 0_u64;
                sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().ok()?;
                *counted = bytes as usize;
            }
        }
        Some(counted)
    }

    pub(super) fn most_used_bytes(device: &Device) -> Option<usize> {
        let Device::Cuda(cuda) = device else { return None };
        let high = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        pool_bytes(cuda.cuda_stream().context(), [high]).map(|[bytes]| bytes)
    }

    /// The driver's name for a device, and the memory that this process can still have.
    pub(super) fn name_and_free_bytes(device: &Device) -> Option<(String, usize)> {
        let Device::Cuda(cuda) = device else { return None };
        let stream = cuda.cuda_stream();
        // What was dropped before is freed behind the work that used it.
        stream.synchronize().ok()?;
        let (free, _) = stream.context().mem_get_info().ok()?;
        let current = [
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
        ];
        let [reserved, used] = pool_bytes(stream.context(), current).unwrap_or_default();
        Some((stream.context().name().unwrap_or_default(), super::usable_bytes(free, reserved, used)))
    }

    pub(super) fn compute_capability(device: &Device) -> Option<(i32, i32)> {
        let Device::Cuda(cuda) = device else { return None };
        cuda.cuda_stream().context().compute_capability().ok()
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_program_is_not_built_for_is_refused_in_words() {
        let check = |built_for, capability| check_built_for(DeviceChoice::Cuda(0), built_for, capability);
        let all = "8.0 8.6 8.9 9.0a 12.0 8.0+PTX";
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0), (12, 1)] {
            check(all, capability).expect("runs");
        }
        let error = check(all, (7, 5)).expect_err("too old").to_string();
        assert!(
            error.contains("built for compute capability 8.0 8.6 8.9 9.0a 12.0 8.0+PTX, and the device has 7.5"),
            "{error}"
        );
        let error = check("9.0a 9.0a+PTX", (8, 9)).expect_err("another").to_string();
        assert!(
            error.ends_with("with `CUDA_COMPUTE_CAP=80` for all devices from 8.0 on, or use `--device cpu`"),
            "{error}"
        );
    }

    #[test]
    fn errors_that_stay_are_told_from_those_that_pass() {
        let of = |code: &str| failure(format!("DriverError({code}, \"words\")"));
        for code in STICKY {
            assert!(matches!(of(code), EngineError::DeviceLost(text) if text.contains(code)), "{code}");
        }
        for code in ["CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "CUDA_ERROR_INVALID_VALUE", "CUDA_ERROR_NO_BINARY_FOR_GPU"] {
            assert!(matches!(of(code), EngineError::Fatal(_)), "{code}");
        }
        assert!(matches!(of("CUDA_ERROR_OUT_OF_MEMORY"), EngineError::OutOfMemory(_)));
        assert!(matches!(device_error(candle_core::Error::Msg("no".into())), EngineError::Fatal(_)));
    }

    /// An engine of 31 GiB has ended, and the next one plans on a device of 48 GiB.
    #[test]
    fn memory_that_the_pool_keeps_counts_as_free() {
        assert_eq!(usable_bytes(10, 36, 0), 46);
        assert_eq!(usable_bytes(10, 36, 30), 16);
        assert_eq!(usable_bytes(10, 0, 1), 10, "read one after the other, the numbers may not fit");
    }

    #[test]
    fn a_device_has_a_name_without_being_opened() {
        assert!(name(DeviceChoice::Cpu).expect("the CPU is there").starts_with("cpu, "));
        assert_eq!(capability_unopened(DeviceChoice::Cpu), None);
        if !cfg!(feature = "cuda") {
            assert!(name(DeviceChoice::Auto).expect("the CPU is there").starts_with("cpu, "));
            assert!(matches!(name(DeviceChoice::Cuda(0)), Err(DeviceError::NotBuilt(_))));
        }
    }
}
