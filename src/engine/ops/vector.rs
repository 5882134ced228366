//! Arithmetic on slices of f32. Uses the widest vector unit of the processor, with the same bits on all: sums are taken in
//! sixteen fixed lanes, and no multiplication is fused with an addition.

/// Independent partial sums: enough to fill two AVX registers, and part of the result's definition.
pub(super) const SUM_LANES: usize = 16;

/// Functions that are compiled for the widest vector unit of this processor, with all that is inlined into them. What they borrow has one
/// lifetime.
///
/// They are no closures that are passed on: a closure cannot be told to become part of its caller, and one of some length did not, so
/// that it was compiled for any processor.
macro_rules! vectorized {
    (@output) => { () };
    (@output $output:ty) => { $output };
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$life:lifetime>($($argument:ident: $type:ty),+ $(,)?) $(-> $output:ty)? $body:block
    )+) => {$(
        $(#[$attribute])*
        $visibility fn $name<$life>($($argument: $type),+) $(-> $output)? {
            struct Work<$life> {
                $($argument: $type,)+
            }

            impl<$life> pulp::NullaryFnOnce for Work<$life> {
                type Output = vectorized!(@output $($output)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Self { $($argument),+ } = self;
                    $body
                }
            }

            pulp::Arch::new().dispatch(Work { $($argument),+ })
        }
    )+};
}
pub(in crate::engine) use vectorized;

/// Sum of `term` over `values`, in fixed lanes.
#[inline(always)]
fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; SUM_LANES];
    let chunks = values.chunks_exact(SUM_LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane += term(value);
    }
    folded(lanes)
}

/// The sum of partial sums.
#[inline(always)]
pub(super) fn folded(mut lanes: [f32; SUM_LANES]) -> f32 {
    let mut width = SUM_LANES / 2;
    while width > 0 {
        for index in 0..width {
            lanes[index] += lanes[index + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    sum_of(values, |value| value)
}

#[inline(always)]
pub(super) fn sum_of_squares(values: &[f32]) -> f32 {
    sum_of(values, |value| value * value)
}

/// Mean and 1 / sqrt(variance + epsilon), the variance in a second pass over the differences (as torch does).
#[inline(always)]
pub(super) fn mean_and_scale(values: &[f32], epsilon: f32) -> (f32, f32) {
    let count = values.len() as f32;
    let mean = sum(values) / count;
    let variance = sum_of(values, |value| (value - mean) * (value - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// Writes the values over their root mean square, each times its scale.
#[inline(always)]
pub(super) fn rms_normalize(values: &[f32], scale: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = 1.0 / (sum_of_squares(values) / values.len() as f32 + epsilon).sqrt();
    for ((out, &value), &scale) in out.iter_mut().zip(values).zip(scale) {
        *out = value * inverse * scale;
    }
}

/// Mean, and sum of squared differences from it.
#[inline(always)]
pub(super) fn moments(values: &[f32]) -> (f32, f32) {
    let mean = sum(values) / values.len() as f32;
    (mean, sum_of(values, |value| (value - mean) * (value - mean)))
}

#[inline(always)]
pub(super) fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; SUM_LANES];
    let chunks = values.chunks_exact(SUM_LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane = if value > *lane { value } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// e^x within 2 units in the last place; 0 below -87.3, and finite up to 88.3. NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial (degree 7, error below 1e-8); 2^n by its bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    // ln 2 split in two, so that n × HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 × 2^23 rounds to the nearest integer.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = if x > HIGHEST { HIGHEST } else { x };
    let clamped = if clamped < LOWEST { LOWEST } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut polynomial = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        polynomial = polynomial * r + coefficient;
    }
    // The integer n, between -126 and 127, is in the low bits of `rounded`: cheaper than a conversion, which would have to
    // check for NaN.
    let integer = rounded.to_bits().wrapping_sub(ROUNDER.to_bits());
    let power = f32::from_bits(integer.wrapping_add(127) << 23);
    let value = polynomial * power;
    if x < LOWEST { 0.0 } else { value }
}

/// Replaces scores with the numerators of `softmax(scale × scores)`, and returns their sum, the denominator.
#[inline(always)]
fn numerators_of(scores: &mut [f32], scale: f32) -> f32 {
    let highest = maximum(scores);
    for score in &mut *scores {
        *score = exp((*score - highest) * scale);
    }
    sum(scores)
}

vectorized! {
    /// Replaces scores with the numerators of `softmax(scale × scores)`, and returns their sum, the denominator.
    pub(super) fn softmax_numerators<'a>(scores: &'a mut [f32], scale: f32) -> f32 {
        numerators_of(scores, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in -870_000..883_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::MAX).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[inline(always)]
    fn statistics(values: &[f32]) -> (f32, f32, (f32, f32), (f32, f32)) {
        (sum(values), sum_of_squares(values), moments(values), mean_and_scale(values, 1e-6))
    }

    vectorized! {
        fn wide_statistics<'a>(values: &'a [f32]) -> (f32, f32, (f32, f32), (f32, f32)) {
            statistics(values)
        }
    }

    #[test]
    fn every_vector_unit_gives_the_same_bits() {
        let values: Vec<f32> = (0..1003).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        assert_eq!(wide_statistics(&values), statistics(&values));
        let mut wide = values.clone();
        let wide_sum = softmax_numerators(&mut wide, 0.3);
        let mut plain = values;
        let plain_sum = numerators_of(&mut plain, 0.3);
        assert_eq!((wide, wide_sum), (plain, plain_sum));
    }
}
