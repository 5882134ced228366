//! Whether a device and a model support a precision, and how many bytes it saves.

use candle_core::{DType, Device};

use super::bf16::Bf16;
use super::e4m3::E4m3;
use crate::domain::device::Offload;
use crate::domain::precision::Precision;
use crate::engine::device;
use crate::engine::ops::quantize;

/// Linear layers of one shape: how many, and `[outputs, inputs]`.
pub(crate) type LinearCount = (usize, [usize; 2]);

/// A precision that the device or the model does not support.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// The device is too old.
    #[error(
        "`--precision fp8` needs a device that multiplies fp8, of compute capability 8.9 or later, and {device} has {}.{}. \
         Keeping weights in fp8 and multiplying them in bf16 is not implemented: use `--precision full`, and \
         `--offload text` where memory is short",
        capability.0, capability.1
    )]
    Device {
        /// Which device.
        device: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The library has no such GEMM there.
    #[error("`--precision fp8` does not work on {device}: {reason}; use `--precision full`")]
    Refused {
        /// Which device.
        device: String,
        /// The library's message.
        reason: String,
    },
    /// The device computes in it as it is.
    #[error(
        "`--precision bf16` is for the CPU, and {device} computes in bf16 in full precision: use `--precision full`"
    )]
    ComputesInBf16 {
        /// Which device.
        device: String,
    },
    /// Blocks would be quantized anew for each step.
    #[error(
        "`--precision {0}` and `--offload blocks` exclude each other: the precision quantizes weights that stay in memory; leave one \
         of them out"
    )]
    Streamed(Precision),
    /// A layer is too narrow or too wide.
    #[error(
        "`--precision fp8` needs layers whose widths are multiples of 16 and at most 16384, and the model has one of \
         {width}: use `--precision full`"
    )]
    Width {
        /// The layer's width.
        width: usize,
    },
}

/// Checks whether a device supports a precision, by trying.
///
/// # Errors
/// When it does not.
pub(crate) fn check_device(device: &Device, precision: Precision) -> Result<(), PrecisionError> {
    match precision {
        Precision::Full => return Ok(()),
        Precision::Bf16 if device.is_cpu() => return Ok(()),
        Precision::Bf16 => return Err(PrecisionError::ComputesInBf16 { device: device::describe(device) }),
        Precision::Fp8 => {}
    }
    if let Some(capability) = device::compute_capability(device) {
        check_capability(capability, || device::describe(device))?;
    }
    quantize::try_on(device, device::dtype(device))
        .map_err(|error| PrecisionError::Refused { device: device::describe(device), reason: error.to_string() })
}

/// Checks whether blocks can be read for each step in a precision.
///
/// # Errors
/// When they cannot.
pub(crate) fn check_streamed(offload: Offload, precision: Precision) -> Result<(), PrecisionError> {
    if offload == Offload::Blocks && precision.quantizes() {
        return Err(PrecisionError::Streamed(precision));
    }
    Ok(())
}

/// Checks whether devices of a compute capability multiply e4m3.
fn check_capability(capability: (i32, i32), device: impl FnOnce() -> String) -> Result<(), PrecisionError> {
    match quantize::Scaling::of(capability) {
        Some(_) => Ok(()),
        None => Err(PrecisionError::Device { device: device(), capability }),
    }
}

/// Checks whether a device can multiply the layers that a precision is for.
///
/// # Errors
/// When a layer is too narrow or too wide.
pub(crate) fn check_widths(
    linears: impl IntoIterator<Item = LinearCount>,
    device: &Device,
    precision: Precision,
) -> Result<(), PrecisionError> {
    if !precision.quantizes() || device.is_cpu() {
        return Ok(());
    }
    // A layer's output is another's input, all of it or in parts.
    let unfit = |(_, [outputs, inputs]): LinearCount| match (quantize::is_possible(inputs), outputs.is_multiple_of(16))
    {
        (false, _) => Some(inputs),
        (true, false) => Some(outputs),
        (true, true) => None,
    };
    linears.into_iter().find_map(unfit).map_or(Ok(()), |width| Err(PrecisionError::Width { width }))
}

/// The type of the linear layers that a precision is for, where others are of `dtype` and none is quantized.
pub(crate) fn dtype_of_linears(dtype: DType, precision: Precision) -> DType {
    match precision {
        Precision::Bf16 => DType::BF16,
        Precision::Full | Precision::Fp8 => dtype,
    }
}

/// Checks whether GPUs support a precision, where none is at hand.
///
/// # Errors
/// When none does.
pub(crate) fn check_gpu(precision: Precision) -> Result<(), PrecisionError> {
    match precision {
        Precision::Bf16 => Err(PrecisionError::ComputesInBf16 { device: "a GPU".to_owned() }),
        Precision::Full | Precision::Fp8 => Ok(()),
    }
}

/// Bytes by which the weights are smaller in a precision than in `dtype`.
pub(crate) fn bytes_saved(linears: impl IntoIterator<Item = LinearCount>, dtype: DType, precision: Precision) -> usize {
    let bytes: fn([usize; 2]) -> usize = match precision {
        Precision::Full => return 0,
        Precision::Bf16 => Bf16::bytes,
        Precision::Fp8 => E4m3::bytes,
    };
    let saved = |(count, [outputs, inputs]): LinearCount| {
        count * (outputs * inputs * dtype.size_in_bytes() - bytes([outputs, inputs]))
    };
    linears.into_iter().map(saved).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::models::flux1::config::TransformerConfig;

    fn flux_dev() -> [LinearCount; 6] {
        TransformerConfig::flux_dev().block_linears()
    }

    #[test]
    fn the_linear_layers_of_flux_take_half() {
        let elements: usize = flux_dev().iter().map(|(count, [outputs, inputs])| count * outputs * inputs).sum();
        // 19 blocks of 24 hidden², 38 of 12.
        assert_eq!(elements, 912 * 3072 * 3072);
        assert_eq!(bytes_saved(flux_dev(), DType::BF16, Precision::Full), 0);
        let saved = bytes_saved(flux_dev(), DType::BF16, Precision::Fp8);
        let scales = elements - saved;
        assert!(scales > 0 && scales < 10_000_000, "{scales} bytes of scales");
        assert_eq!(bytes_saved(flux_dev(), DType::F32, Precision::Bf16), 2 * elements);
        assert_eq!(bytes_saved(flux_dev(), DType::BF16, Precision::Bf16), 0);
    }

    #[test]
    fn the_cpu_supports_all() {
        for precision in [Precision::Full, Precision::Bf16, Precision::Fp8] {
            check_device(&Device::Cpu, precision).expect("supported");
            check_widths(flux_dev(), &Device::Cpu, precision).expect("supported");
        }
    }

    #[test]
    fn flux_is_neither_too_narrow_nor_too_wide() {
        for (_, [outputs, inputs]) in flux_dev() {
            assert!(outputs.is_multiple_of(16) && quantize::is_possible(inputs), "{outputs}x{inputs}");
        }
        assert!(![0, 8, 24, 16_400].into_iter().any(quantize::is_possible));
    }

    #[test]
    fn an_unsupported_precision_is_reported_with_a_hint() {
        let errors = [
            PrecisionError::Refused { device: "cuda:0".to_owned(), reason: "no".to_owned() }.to_string(),
            PrecisionError::Width { width: 24 }.to_string(),
            PrecisionError::ComputesInBf16 { device: "cuda:0".to_owned() }.to_string(),
        ];
        assert!(errors.iter().all(|error| error.ends_with("use `--precision full`")), "{errors:?}");
    }

    #[test]
    fn blocks_that_are_read_for_each_step_are_not_quantized() {
        let error = check_streamed(Offload::Blocks, Precision::Fp8).expect_err("both").to_string();
        assert!(error.starts_with("`--precision fp8` and `--offload blocks` exclude each other"), "{error}");
        check_streamed(Offload::Blocks, Precision::Full).expect("no conflict");
        check_streamed(Offload::Blocks, Precision::Bf16).expect("rounded whenever they are multiplied");
        check_streamed(Offload::Text, Precision::Fp8).expect("no conflict");
    }

    #[test]
    fn a_device_is_refused_if_it_does_not_multiply_fp8() {
        let check = |capability| check_capability(capability, || "cuda:0, A GPU".to_owned());
        for capability in [(8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            check(capability).expect("multiplies fp8");
        }
        for capability in [(8, 0), (8, 6), (8, 7)] {
            check(capability).expect_err("too old");
        }
        let error = check((8, 6)).expect_err("too old").to_string();
        let why = "needs a device that multiplies fp8, of compute capability 8.9 or later, and cuda:0, A GPU has 8.6.";
        let what = "use `--precision full`, and `--offload text` where memory is short";
        assert!(error.contains(why) && error.ends_with(what), "{error}");
    }
}
