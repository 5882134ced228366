//! Whether a model can be drawn with in eight bits on a device, and what that saves of its memory.
//!
//! Rounded are the linear layers of the blocks: queries, keys and values, what follows attention, and the feed-forward
//! part, four fifths of a step's arithmetic. Not rounded are the modulations, which see one row for each image:
//! they are bound by reading weights once a step, and what is wrong in a shift or a gate is wrong in every token. Nor the
//! embedders and the final layer, which are small, and where all that is drawn goes through.

use candle_core::{DType, Device};

use super::device;
use super::loader::config::TransformerConfig;
use super::ops::quantize::{self, Quantized};
use crate::domain::device::DeviceChoice;
use crate::domain::precision::Precision;

/// The first devices for which cublasLt multiplies e4m3 with a scale for each row.
const CAPABILITY_MIN: (i32, i32) = (9, 0);

/// A precision that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// The device is too old.
    #[error(
        "`--precision fp8` needs a device of compute capability {}.{}, and {device} has {}.{}: use `--precision full`",
        CAPABILITY_MIN.0, CAPABILITY_MIN.1, capability.0, capability.1
    )]
    Device {
        /// Which device.
        device: String,
        /// What it has.
        capability: (i32, i32),
    },
    /// The library has no such product there.
    #[error("`--precision fp8` does not work on {device}: {reason}; use `--precision full`")]
    Refused {
        /// Which device.
        device: String,
        /// What the library says.
        reason: String,
    },
    /// The model is too narrow or too wide.
    #[error(
        "`--precision fp8` needs layers whose widths are multiples of 16 and at most 16384, and the model has one of \
         {width}: use `--precision full`"
    )]
    Width {
        /// Of its rows.
        width: usize,
    },
}

/// Whether a device can be drawn on in a precision.
///
/// # Errors
/// When it cannot.
pub fn check_precision(choice: DeviceChoice, precision: Precision) -> Result<(), super::LoadError> {
    Ok(check_device(&device::open(choice)?, precision)?)
}

/// The same of a device that is open, by trying.
pub(crate) fn check_device(device: &Device, precision: Precision) -> Result<(), PrecisionError> {
    if precision == Precision::Full {
        return Ok(());
    }
    match device::compute_capability(device) {
        Some(capability) if capability < CAPABILITY_MIN => {
            return Err(PrecisionError::Device { device: device::describe(device), capability });
        }
        _ => {}
    }
    quantize::try_on(device, device::dtype(device))
        .map_err(|error| PrecisionError::Refused { device: device::describe(device), reason: error.to_string() })
}

/// Whether a device can multiply a model's layers in a precision.
pub(crate) fn check_widths(
    config: &TransformerConfig,
    device: &Device,
    precision: Precision,
) -> Result<(), PrecisionError> {
    if precision == Precision::Full || device.is_cpu() {
        return Ok(());
    }
    let shapes = block_linears(config).into_iter().map(|(_, shape)| shape);
    // What a layer gives is the input of another, whole or in parts.
    let unfit = |[outputs, inputs]: [usize; 2]| match (quantize::is_possible(inputs), outputs.is_multiple_of(16)) {
        (false, _) => Some(inputs),
        (true, false) => Some(outputs),
        (true, true) => None,
    };
    shapes.into_iter().find_map(unfit).map_or(Ok(()), |width| Err(PrecisionError::Width { width }))
}

/// Of the blocks' linear layers, how many there are of each shape: outputs, inputs.
fn block_linears(config: &TransformerConfig) -> [(usize, [usize; 2]); 6] {
    let (hidden, mlp) = (config.hidden_size(), config.mlp_size());
    // Text and image have layers of their own.
    let (double, single) = (2 * config.num_layers, config.num_single_layers);
    [
        (double, [3 * hidden, hidden]),
        (double, [hidden, hidden]),
        (double, [mlp, hidden]),
        (double, [hidden, mlp]),
        (single, [3 * hidden + mlp, hidden]),
        (single, [hidden, hidden + mlp]),
    ]
}

/// Bytes that a transformer's weights take less in a precision than in `dtype`.
pub(crate) fn bytes_saved(config: &TransformerConfig, dtype: DType, precision: Precision) -> usize {
    if precision == Precision::Full {
        return 0;
    }
    let saved = |(count, [outputs, inputs]): (usize, [usize; 2])| {
        count * (outputs * inputs * dtype.size_in_bytes() - Quantized::bytes(outputs, inputs))
    };
    block_linears(config).into_iter().map(saved).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::loader::config::Configs;

    #[test]
    fn the_linear_layers_of_flux_take_half() {
        let config = Configs::flux_dev().transformer;
        let elements: usize = block_linears(&config).iter().map(|(count, [out, inn])| count * out * inn).sum();
        // 19 blocks of 24 hidden², 38 of 12.
        assert_eq!(elements, 912 * 3072 * 3072);
        assert_eq!(bytes_saved(&config, DType::BF16, Precision::Full), 0);
        let saved = bytes_saved(&config, DType::BF16, Precision::Fp8);
        let scales = elements - saved;
        assert!(scales > 0 && scales < 10_000_000, "{scales} bytes of scales");
    }

    #[test]
    fn the_cpu_can_be_drawn_on_in_either() {
        for precision in [Precision::Full, Precision::Fp8] {
            check_precision(DeviceChoice::Cpu, precision).expect("it can");
            check_widths(&Configs::flux_dev().transformer, &Device::Cpu, precision).expect("it can");
        }
    }

    #[test]
    fn flux_is_neither_too_narrow_nor_too_wide() {
        for (_, [outputs, inputs]) in block_linears(&Configs::flux_dev().transformer) {
            assert!(outputs.is_multiple_of(16) && quantize::is_possible(inputs), "{outputs}x{inputs}");
        }
        assert!(![0, 8, 24, 16_400].into_iter().any(quantize::is_possible));
    }

    #[test]
    fn what_cannot_be_had_is_said_with_the_way_out() {
        let errors = [
            PrecisionError::Device { device: "cuda:0, A GPU".to_owned(), capability: (8, 6) }.to_string(),
            PrecisionError::Refused { device: "cuda:0".to_owned(), reason: "no".to_owned() }.to_string(),
            PrecisionError::Width { width: 24 }.to_string(),
        ];
        assert!(errors.iter().all(|error| error.ends_with("use `--precision full`")), "{errors:?}");
        assert!(
            errors[0].contains("needs a device of compute capability 9.0, and cuda:0, A GPU has 8.6"),
            "{errors:?}"
        );
    }
}
