//! Operations in fp8 (e4m3). The CPU quantizes to the same codes, so that only rounding to bf16 and the order of sums differ.

use candle_core::{Result, Tensor};

use super::operation::{Numbers, Operation};
use super::shapes::{ROWS, SEQUENCES, WIDTH, segments};
use crate::domain::operation_group::OperationGroup::Fp8;
use crate::engine::ops::quantize::{self, Quantized, Scaling};

const BESIDE: &str = "GELU beside attention in fp8";

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    of("linear in fp8", small_layer, |x| multiply(&Quantized::of(&x[0])?, &x[1], &x[2])),
    of(
        "layer norm in fp8",
        |numbers| {
            let per_sequence = |seed| numbers.random(seed, &[SEQUENCES, WIDTH]);
            Ok([small_layer(numbers)?, vec![per_sequence(54)?, per_sequence(55)?]].concat())
        },
        |x| multiply(&Quantized::of_layer_norm(&x[0], &x[3], &x[4], &segments())?, &x[1], &x[2]),
    ),
    Operation {
        // Of two layers.
        roundings: 2.0,
        ..of(
            BESIDE,
            |numbers| {
                let wide = vec![numbers.weight(53, &[WIDTH, 2 * WIDTH])?, numbers.random(56, &[WIDTH])?];
                Ok([small_layer(numbers)?, wide].concat())
            },
            |x| {
                let weight = Quantized::of(&x[1])?;
                let right = quantize::product(&Quantized::of(&x[0])?, &weight, Some(&x[2]))?.narrow(WIDTH, WIDTH)?;
                multiply(&Quantized::of_gelu_tanh(Some(&x[0]), &right)?, &x[3], &x[4])
            },
        )
    },
    wide("linear in fp8, 3072 to 12288", |numbers| layer(numbers, [77, 3072, 12_288])),
    wide("linear in fp8, 15360 to 3072", |numbers| layer(numbers, [77, 15_360, 3072])),
    // The way of every device but Hopper, on all of them.
    Operation { roundings: 2.0, ..of("linear in fp8, scaled afterwards", small_layer, scaled_afterwards) },
    Operation {
        roundings: 3.0,
        ..of(
            "linear in fp8, scaled afterwards, 3072 to 12288",
            |numbers| layer(numbers, [77, 3072, 12_288]),
            scaled_afterwards,
        )
    },
];

const fn of(
    name: &'static str,
    operands: fn(&Numbers) -> Result<Vec<Tensor>>,
    op: fn(&[Tensor]) -> Result<Tensor>,
) -> Operation {
    Operation { group: Fp8, name, operands, op, roundings: 1.0 }
}

/// A layer of FLUX.1's own widths. The tensor cores add so many products with fewer bits than f32 has.
const fn wide(name: &'static str, operands: fn(&Numbers) -> Result<Vec<Tensor>>) -> Operation {
    Operation { roundings: 2.0, ..of(name, operands, |x| multiply(&Quantized::of(&x[0])?, &x[1], &x[2])) }
}

/// Rows, weight and bias of a layer.
fn layer(numbers: &Numbers, [rows, inputs, outputs]: [usize; 3]) -> Result<Vec<Tensor>> {
    let (x, weight) = (numbers.random(50, &[rows, inputs])?, numbers.weight(51, &[outputs, inputs])?);
    Ok(vec![x, weight, numbers.random(52, &[outputs])?])
}

fn small_layer(numbers: &Numbers) -> Result<Vec<Tensor>> {
    layer(numbers, [ROWS, WIDTH, 2 * WIDTH])
}

fn multiply(x: &Quantized, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    quantize::product(x, &Quantized::of(weight)?, Some(bias))?.biased()
}

/// The product of the codes is rounded before it is scaled, and again afterwards.
fn scaled_afterwards(x: &[Tensor]) -> Result<Tensor> {
    let [rows, weight] = [Quantized::of(&x[0])?, Quantized::of(&x[1])?];
    quantize::product_by(Some(Scaling::Afterwards), &rows, &weight, Some(&x[2]))?.biased()
}

#[cfg(test)]
mod tests {
    use super::super::operation::Difference;
    use super::*;
    use candle_core::DType;

    /// A device in bf16 rounds a layer's output before it is quantized again, which moves some codes by one.
    #[test]
    fn rounding_between_two_layers_is_within_the_tolerance() {
        let numbers = Numbers { dtype: DType::BF16 };
        let operation = OPERATIONS.iter().find(|operation| operation.name == BESIDE).expect("in the list");
        let x = (operation.operands)(&numbers).expect("operands");
        let expected = (operation.op)(&x).expect("computes");
        let rounded = || -> Result<Tensor> {
            let weight = Quantized::of(&x[1])?;
            let right = quantize::product(&Quantized::of(&x[0])?, &weight, Some(&x[2]))?.narrow(WIDTH, WIDTH)?;
            let right = numbers.rounded(&right.biased()?)?.into();
            numbers.rounded(&multiply(&Quantized::of_gelu_tanh(Some(&x[0]), &right)?, &x[3], &x[4])?)
        };
        let difference = Difference::of(&rounded().expect("computes"), &expected).expect("one shape");
        assert_eq!(difference.fault(0.01 * operation.roundings), None, "{difference:?}");
        assert!(difference.error > 0.002, "{difference:?}");
    }
}
