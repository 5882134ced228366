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
        DeviceChoice::Cuda(ordinal) => Device::new_cuda(ordinal)
            .map_err(|error| DeviceError::Unavailable { choice, reason: first_line(&error.to_string()) }),
        DeviceChoice::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
        DeviceChoice::Auto => match Device::new_cuda(0) {
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

fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// Weights and activations: bf16 where the hardware multiplies it, f32 on the CPU, which does not.
pub(crate) fn dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::BF16 }
}

/// Pictures held at a time; their latents are small, so this bounds waiting rather than memory.
const PICTURES_MAX: usize = 32;

/// Tokens in one step: the largest single request (2048×2048 pixels, 512 text tokens, two passes), so that any request
/// fits alone and many small ones fit together.
const STEP_TOKENS_MAX: usize = 2 * (128 * 128 + 512);

/// What one step may hold before anything is known about the device.
pub(crate) fn initial_limits() -> EngineLimits {
    EngineLimits { pictures_max: PICTURES_MAX, step_tokens_max: STEP_TOKENS_MAX }
}

/// What one step may hold after `tokens` were too many: half of them.
pub(crate) fn limits_after_out_of_memory(limits: EngineLimits, tokens: usize) -> EngineLimits {
    EngineLimits { step_tokens_max: limits.step_tokens_max.min(tokens / 2).max(1), ..limits }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
