//! Compares a device with the CPU: every operation of a step, on the same random numbers, in the device's precision.

mod autoencoder;
mod fp8;

use candle_core::{DType, Device, Result, Tensor};

use crate::domain::device::DeviceChoice;

use super::device;
use super::error::LoadError;
use super::noise::standard_normal;
use super::ops::activation::{gelu_tanh, silu};
use super::ops::attention::{KERNELS, attention_by, attention_into, biased_attention};
use super::ops::group_norm::GroupNorm;
use super::ops::kernel::Kernel;
use super::ops::linear::{gelu_linear, gelu_linear_into, linear, matrix_product};
use super::ops::modulation::{gated_residual, modulated_layer_norm};
use super::ops::rope::{Rotary, normalize_and_rotate, normalize_and_rotate_into};
use super::ops::text::{gated_gelu, rms_norm};
use super::ops::{Places, Segments, unwritten};

/// The error of one operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpReport {
    /// The operation.
    pub name: &'static str,
    /// The difference from the CPU's result in f32, relative to that result, both by their Euclidean norms.
    pub error: f64,
    /// The largest error that rounding explains in the device's precision.
    pub tolerance: f64,
}

impl OpReport {
    /// Whether the error is within the tolerance.
    #[must_use]
    pub fn is_right(&self) -> bool {
        // In this form NaN is not right.
        self.error <= self.tolerance
    }
}

/// Lengths of the sequences: a block's tail, one token, several blocks.
const LENGTHS: [usize; 4] = [77, 1, 300, 128];

/// As in FLUX.1-dev.
const HEAD_WIDTH: usize = 128;
const HEADS: usize = 3;

/// bf16 has eight significant bits: half a unit in the last place is 2⁻⁹, and a few of them may add up.
const BF16_TOLERANCE: f64 = 0.01;
const F32_TOLERANCE: f64 = 1e-5;

/// Runs every operation on the device and on the CPU.
///
/// # Errors
/// When the device is not available, or an operation fails.
pub fn self_test(choice: DeviceChoice) -> std::result::Result<Vec<OpReport>, LoadError> {
    let device = device::open(choice)?;
    Ok(Operands { dtype: device::dtype(&device), device: Device::clone(&device) }.run()?)
}

struct Operands {
    dtype: DType,
    device: Device,
}

/// `count` numbers from the normal distribution. Unlike noise, not in blocks.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut numbers = standard_normal(seed, 0, count.next_multiple_of(16));
    numbers.truncate(count);
    numbers
}

/// Rotary tables of tokens in two columns.
fn tables(tokens: usize, axes: [usize; 3], device: &Device) -> Result<Rotary> {
    Rotary::at((0..tokens / 2 * 2).map(|token| [0, token / 2, token % 2]), axes, 10_000.0, device)
}

/// An operation on operands of one device.
type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

impl Operands {
    fn run(&self) -> Result<Vec<OpReport>> {
        let segments = Segments::from_lengths(LENGTHS);
        let rows = segments.rows();
        let width = HEADS * HEAD_WIDTH;
        let stream = |seed, columns| self.random(seed, &[rows, columns]);
        let per_sequence = |seed| self.random(seed, &[LENGTHS.len(), width]);
        let head = |seed| self.random(seed, &[HEAD_WIDTH]);
        let weight = |seed| self.random(seed, &[width, width])? / (width as f64).sqrt();
        let bias = |seed| self.random(seed, &[width]);
        let wide = |seed| self.random(seed, &[4 * width, width])? / (width as f64).sqrt();
        let bias_of_wide = |seed| self.random(seed, &[4 * width]);
        let axes = [16, 56, 56];
        let rotary = |device: &Device| tables(rows, axes, device);
        let ops: [(&'static str, Vec<Tensor>, Op); _] = [
            ("linear", vec![stream(1, width)?, self.random(2, &[256, width])?, self.random(3, &[256])?], &|x| {
                linear(&x[0], &x[1], Some(&x[2]))
            }),
            ("linear, GELU", vec![stream(30, width)?, wide(31)?, bias_of_wide(32)?], &|x| {
                gelu_linear(&x[0], &x[1], Some(&x[2]))
            }),
            ("attention", vec![stream(4, 3 * width)?], &|x| attention_by(Kernel::Warp, &x[0], HEADS, &segments)),
            ("modulated layer norm", vec![stream(5, width)?, per_sequence(6)?, per_sequence(7)?], &|x| {
                modulated_layer_norm(&x[0], &x[1], &x[2], &segments)
            }),
            (
                "gated residual",
                vec![stream(8, width)?, stream(9, width)?, per_sequence(10)?, weight(21)?, bias(22)?],
                &|x| gated_residual(&x[0], &matrix_product(&x[1], &x[3], Some(&x[4]))?, &x[2], &segments),
            ),
            ("normalize and rotate", vec![stream(11, 3 * width)?, head(12)?, head(13)?], &|x| {
                normalize_and_rotate(&x[0].clone().into(), &x[1], &x[2], Some(&rotary(x[0].device())?))
            }),
            (
                "normalize a biased slice",
                vec![stream(14, width)?, head(15)?, head(16)?, wide(23)?, bias_of_wide(24)?],
                &|x| {
                    let product = matrix_product(&x[0], &x[3], Some(&x[4]))?;
                    normalize_and_rotate(&product.narrow(width, 3 * width)?, &x[1], &x[2], None)
                },
            ),
            ("GELU", vec![stream(17, 4 * width)?], &|x| gelu_tanh(&x[0].narrow(1, width, width)?.into())),
            ("biased GELU", vec![stream(18, width)?, weight(25)?, bias(26)?], &|x| {
                gelu_tanh(&matrix_product(&x[0], &x[1], Some(&x[2]))?)
            }),
            (
                "group norm, SiLU",
                vec![self.random(27, &[1, 64, 24, 48])?, self.random(28, &[64])?, self.random(29, &[64])?],
                &|x| GroupNorm::new(32, 1e-6, x[1].clone(), x[2].clone()).forward_silu(&x[0]),
            ),
            ("SiLU", vec![stream(20, width)?], &|x| silu(&x[0])),
            (
                "attention with a bias",
                vec![(self.random(30, &[128, 3 * width])? * 0.3)?, self.random(31, &[2 * HEADS, 256])?],
                &|x| biased_attention(&x[0], 2 * HEADS, &x[1].to_dtype(DType::F32)?),
            ),
            ("RMSNorm", vec![stream(32, width)?, self.random(33, &[width])?], &|x| rms_norm(&x[0], &x[1], 1e-6)),
            ("gated GELU", vec![stream(34, 2 * width)?], &|x| gated_gelu(&x[0])),
        ];
        let mut reports = ops
            .into_iter()
            .map(|(name, operands, op)| self.compare(name, &operands, op))
            .collect::<Result<Vec<_>>>()?;
        if KERNELS.kernels(&self.device).contains(&Kernel::Warpgroup) {
            let op: Op = &|x| attention_by(Kernel::Warpgroup, &x[0], HEADS, &segments);
            reports.push(self.compare("attention by warpgroups", &[stream(4, 3 * width)?], op)?);
        }
        reports.extend(self.run_in_place()?);
        reports.extend(self.autoencoder()?);
        reports.extend(self.run_fp8()?);
        Ok(reports)
    }

    /// Operations that write into parts of a matrix.
    fn run_in_place(&self) -> Result<Vec<OpReport>> {
        let segments = Segments::from_lengths(LENGTHS);
        let rows = segments.rows();
        let width = HEADS * HEAD_WIDTH;
        let stream = |seed, columns| self.random(seed, &[rows, columns]);
        let head = |seed| self.random(seed, &[HEAD_WIDTH]);
        let weight = self.random(35, &[4 * width, width])? / (width as f64).sqrt();
        let beside = self.compare(
            "attention beside a layer's GELU",
            &[stream(33, 3 * width)?, stream(34, width)?, weight?, self.random(36, &[4 * width])?],
            &|x| {
                let both = unwritten(rows, 5 * width, &x[0])?;
                attention_into(&both, 0, &x[0], HEADS, &segments)?;
                gelu_linear_into(&both, width, &x[1], &x[2], Some(&x[3]))?;
                Ok(both)
            },
        )?;
        // Each sequence has first its part of one stream, then of the other.
        let firsts = Places::new(&segments, segments.ranges().map(|range| 2 * range.start));
        let seconds = Places::new(&segments, segments.ranges().map(|range| range.start + range.end));
        let streams = [stream(37, 3 * width)?, stream(38, 3 * width)?, head(39)?, head(40)?];
        let joint = self.compare("rotate into a joint stream", &streams, &|x| {
            let joint = unwritten(2 * rows, 3 * width, &x[0])?;
            let rotary = tables(rows, [16, 56, 56], x[0].device())?;
            normalize_and_rotate_into(&joint, &firsts, &x[0].clone().into(), [&x[2], &x[3]], None)?;
            normalize_and_rotate_into(&joint, &seconds, &x[1].clone().into(), [&x[2], &x[3]], Some(&rotary))?;
            Ok(joint)
        })?;
        Ok(vec![beside, joint])
    }

    /// Random numbers on the CPU that are exact in the device's precision.
    fn random(&self, seed: u64, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_dtype(DType::F32)
    }

    fn compare(&self, name: &'static str, operands: &[Tensor], op: Op) -> Result<OpReport> {
        let expected = op(operands)?;
        let moved = operands.iter().map(|operand| operand.to_dtype(self.dtype)?.to_device(&self.device));
        let found = op(&moved.collect::<Result<Vec<_>>>()?)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let norm = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
        let error = norm(&(&found - &expected)?)? / norm(&expected)?;
        let tolerance = if self.dtype == DType::F32 { F32_TOLERANCE } else { BF16_TOLERANCE };
        Ok(OpReport { name, error, tolerance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let reports = self_test(DeviceChoice::Cpu).expect("the CPU is there");
        assert_eq!(reports.len(), 26);
        assert!(reports.iter().all(|report| report.error == 0.0), "{reports:?}");
    }

    #[test]
    fn a_large_error_or_nan_is_not_right() {
        let report = |error| OpReport { name: "x", error, tolerance: 0.01 };
        assert!(report(0.01).is_right());
        assert!(!report(0.02).is_right());
        assert!(!report(f64::NAN).is_right());
    }

    /// A wrong operation is detected: another operation's result stands in for it.
    #[test]
    fn another_result_is_detected() {
        let operands = Operands { dtype: DType::F32, device: Device::Cpu };
        let calls = std::cell::Cell::new(0);
        let x = operands.random(1, &[8, 8]).expect("random");
        let op = |x: &[Tensor]| {
            calls.set(calls.get() + 1);
            if calls.get() == 1 { silu(&x[0]) } else { gelu_tanh(&x[0].clone().into()) }
        };
        assert!(!operands.compare("wrong", &[x], &op).expect("computes").is_right());
    }
}
