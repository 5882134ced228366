//! One operation, run on the CPU and on a device, and how far the results are apart.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::domain::operation_group::OperationGroup;
use crate::engine::noise::standard_normal;

/// An operation on random operands.
pub(super) struct Operation {
    pub(super) group: OperationGroup,
    pub(super) name: &'static str,
    /// Its operands, on the CPU.
    pub(super) operands: fn(&Numbers) -> Result<Vec<Tensor>>,
    /// The operation, on operands of one device.
    pub(super) op: fn(&[Tensor]) -> Result<Tensor>,
    /// How often what it computes is rounded, one time after the other.
    pub(super) roundings: f64,
}

/// Numbers from the normal distribution, repeated where more are needed: a prime, so that no row of a matrix begins as another.
const NUMBERS_MAX: usize = 1_000_003;

/// Random numbers that are exact in a device's precision.
pub(super) struct Numbers {
    pub(super) dtype: DType,
}

impl Numbers {
    /// A tensor on the CPU, in f32.
    pub(super) fn random(&self, seed: u64, shape: &[usize]) -> Result<Tensor> {
        self.rounded(&Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu)?)
    }

    /// A weight `[outputs, inputs, …]`, so that outputs have about the deviation of the inputs.
    pub(super) fn weight(&self, seed: u64, shape: &[usize]) -> Result<Tensor> {
        let inputs: usize = shape.iter().skip(1).product();
        let weight = Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu)?;
        self.rounded(&(weight / (inputs as f64).sqrt())?)
    }

    /// A tensor on the CPU, rounded to the device's precision.
    pub(super) fn rounded(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(self.dtype)?.to_dtype(DType::F32)
    }
}

/// `count` numbers from the normal distribution. Unlike noise, not in blocks.
pub(super) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut numbers = standard_normal(seed, 0, count.min(NUMBERS_MAX).next_multiple_of(16));
    numbers.truncate(count.min(NUMBERS_MAX));
    numbers.into_iter().cycle().take(count).collect()
}

/// The device on which operations are tested.
pub(super) struct Target<'a> {
    pub(super) device: &'a Device,
    /// What it computes in.
    pub(super) dtype: DType,
    /// Waits until it has done all its work.
    pub(super) wait: &'a dyn Fn() -> Result<()>,
}

/// What an operation gave on a device.
pub(super) struct Outcome {
    pub(super) difference: Difference,
    pub(super) milliseconds: f64,
}

impl Operation {
    /// Runs it on the CPU and on the device.
    pub(super) fn run(&self, target: &Target) -> Result<Outcome> {
        let operands = (self.operands)(&Numbers { dtype: target.dtype })?;
        let expected = (self.op)(&operands)?;
        let moved = operands.iter().map(|operand| operand.to_dtype(target.dtype)?.to_device(target.device));
        let moved = moved.collect::<Result<Vec<_>>>()?;
        (target.wait)()?;
        let started = Instant::now();
        let found = (self.op)(&moved)?;
        // Calls only enqueue work: a fault of this operation must not appear at a later one.
        (target.wait)()?;
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Outcome { difference: Difference::of(&found, &expected)?, milliseconds })
    }
}

/// How far a result is from the CPU's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// Of all values together, relative to the CPU's, both by their Euclidean norms.
    pub(super) error: f64,
    /// How many values are not finite.
    not_finite: usize,
    /// The largest difference of one value, relative to the value and the deviation of all.
    worst: f64,
    /// Where it is.
    worst_at: usize,
}

/// One value may be this much further off than all values together: the largest of millions of errors is several deviations.
const OUTLIER: f64 = 10.0;

/// A value's own magnitude counts less than the deviation of all: larger values are rounded more.
const MAGNITUDE: f64 = 0.3;

impl Difference {
    /// Of `found` from `expected`, both f32 on the CPU.
    pub(super) fn of(found: &Tensor, expected: &Tensor) -> Result<Self> {
        if found.dims() != expected.dims() {
            bail!("the result has the shape {:?} instead of {:?}", found.dims(), expected.dims());
        }
        let flat = |tensor: &Tensor| tensor.contiguous()?.flatten_all()?.to_vec1::<f32>();
        Ok(Self::between(&flat(found)?, &flat(expected)?))
    }

    fn between(found: &[f32], expected: &[f32]) -> Self {
        let square = |value: f64| value * value;
        let pairs = || found.iter().zip(expected).map(|(&found, &expected)| (f64::from(found), f64::from(expected)));
        let norm = pairs().map(|(_, expected)| square(expected)).sum::<f64>().sqrt();
        let away = pairs().map(|(found, expected)| square(found - expected)).sum::<f64>().sqrt();
        let deviation = norm / (expected.len().max(1) as f64).sqrt();
        let relative = |(found, expected): (f64, f64)| {
            let difference = (found - expected).abs();
            if difference == 0.0 { 0.0 } else { difference / (deviation + MAGNITUDE * expected.abs()) }
        };
        let (worst_at, worst) =
            pairs().map(relative).enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap_or_default();
        let error = if away == 0.0 { 0.0 } else { away / norm };
        let not_finite = found.iter().filter(|value| !value.is_finite()).count();
        Self { error, not_finite, worst, worst_at }
    }

    /// What is wrong with it, where rounding explains this relative error.
    pub(super) fn fault(&self, tolerance: f64) -> Option<String> {
        let Self { error, not_finite, worst, worst_at } = *self;
        if not_finite > 0 {
            return Some(format!("{not_finite} values are not finite"));
        }
        let percent = |error: f64| format!("{:.3} %", 100.0 * error);
        // NaN is a fault.
        if error.is_nan() || error > tolerance {
            return Some(format!("is {} off, and rounding explains {}", percent(error), percent(tolerance)));
        }
        let outlier = OUTLIER * tolerance;
        if worst.is_nan() || worst > outlier {
            return Some(format!(
                "value {worst_at} is {} off, and rounding explains {}",
                percent(worst),
                percent(outlier)
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(found: &[f32], expected: &[f32]) -> Option<String> {
        Difference::between(found, expected).fault(0.01)
    }

    #[test]
    fn what_rounding_explains_is_right() {
        let expected = [1.0, -2.0, 0.5, 3.0];
        assert_eq!(Difference::between(&expected, &expected).error, 0.0);
        assert_eq!(fault(&[1.005, -2.01, 0.502, 3.01], &expected), None);
        assert_eq!(fault(&[0.0; 4], &[0.0; 4]), None);
    }

    #[test]
    fn wrong_values_and_nan_are_faults() {
        let expected = [1.0, -2.0, 0.5, 3.0];
        assert!(fault(&[1.0, -2.0, 0.5, 3.2], &expected).is_some_and(|fault| fault.contains("% off, and rounding")));
        assert_eq!(fault(&[1.0, f32::NAN, 0.5, f32::INFINITY], &expected), Some("2 values are not finite".to_owned()));
        assert!(fault(&[1.0], &[0.0]).is_some(), "the CPU's is zero");
        assert!(fault(&[1.0], &[f32::NAN]).is_some(), "the CPU's is NaN");
    }

    /// One wrong value among a million changes all of them together by less than rounding does.
    #[test]
    fn one_wrong_value_among_many_is_a_fault() {
        let expected = numbers(1, 1_000_000);
        let mut found = expected.clone();
        found[123_456] += 0.5;
        let difference = Difference::between(&found, &expected);
        assert!(difference.error < 0.001, "{difference:?}");
        let fault = difference.fault(0.01).expect("a fault");
        assert!(fault.starts_with("value 123456 is "), "{fault}");
    }

    #[test]
    fn a_result_of_another_shape_is_an_error() {
        let [one, other] =
            [[2, 3], [3, 2]].map(|shape| Tensor::zeros(&shape, DType::F32, &Device::Cpu).expect("zeros"));
        let error = Difference::of(&one, &other).expect_err("another shape").to_string();
        assert!(error.contains("[2, 3] instead of [3, 2]"), "{error}");
    }

    #[test]
    fn no_row_of_a_large_matrix_begins_as_another() {
        let numbers = numbers(1, 3 * NUMBERS_MAX);
        assert_eq!(numbers.len(), 3 * NUMBERS_MAX);
        for width in [3072, 12_288, 15_360] {
            let firsts: Vec<u32> = numbers.iter().step_by(width).take(50).map(|number| number.to_bits()).collect();
            let distinct: std::collections::BTreeSet<&u32> = firsts.iter().collect();
            assert_eq!(distinct.len(), firsts.len(), "{width}");
        }
    }
}
