use candle_core::{Device, Tensor};

use super::*;
use crate::engine::noise::standard_normal;
use crate::engine::ops::linear::linear;

fn random(seed: u64, rows: usize, width: usize) -> Tensor {
    let numbers = standard_normal(seed, 0, rows * width);
    Tensor::from_vec(numbers, (rows, width), &Device::Cpu).expect("tensor")
}

fn codes(x: &Quantized) -> Vec<Vec<u8>> {
    x.codes.to_vec2().expect("codes")
}

fn scales(x: &Quantized) -> Vec<f32> {
    x.scales.to_vec1().expect("scales")
}

/// The numbers that a matrix in eight bits stands for.
fn values(x: &Quantized) -> Vec<Vec<f32>> {
    let rows = codes(x).into_iter().zip(scales(x));
    rows.map(|(row, scale)| row.into_iter().map(|code| e4m3::VALUES[usize::from(code)] * scale).collect()).collect()
}

fn of_rows<const N: usize>(rows: &[[f32; 3]; N]) -> Quantized {
    Quantized::of(&Tensor::new(rows, &Device::Cpu).expect("tensor")).expect("rounded")
}

#[test]
fn the_largest_of_a_row_becomes_the_largest_there_is() {
    let x = of_rows(&[[448.0, -448.0, 17.0], [0.0, -1.0, 0.5], [1e38, 3e38, 1.0]]);
    assert_eq!(scales(&x), [1.0, 1.0 / 448.0, 3e38 / 448.0]);
    // 17 lies between 16 and 18, of which 16 is even.
    assert_eq!(values(&x)[0], [448.0, -448.0, 16.0]);
    assert_eq!(codes(&x)[1], [0x00, 0xfe, 0x76]);
    assert_eq!(codes(&x)[2][1..], [0x7e, 0x00]);
    assert!(values(&x).concat().iter().all(|value| value.is_finite()));
}

#[test]
fn a_row_of_next_to_nothing_becomes_zeros() {
    let below = NOTICEABLE.next_down();
    let x = of_rows(&[[0.0, -0.0, 0.0], [below, -below, 1e-45], [NOTICEABLE, -NOTICEABLE, 0.0]]);
    assert_eq!(scales(&x), [1.0, 1.0, f32::MIN_POSITIVE]);
    assert_eq!(codes(&x), [[0x00, 0x80, 0x00], [0x00, 0x80, 0x00], [0x7e, 0xfe, 0x00]]);
}

#[test]
fn what_is_not_finite_spoils_its_whole_row_and_no_other() {
    let x = of_rows(&[[1.0, f32::NAN, 0.0], [1.0, 2.0, 4.0], [f32::INFINITY, 1.0, 0.0], [0.0, f32::NEG_INFINITY, 1.0]]);
    assert_eq!(scales(&x).iter().map(|scale| scale.is_nan()).collect::<Vec<_>>(), [true, false, true, true]);
    let weight = Quantized::of(&Tensor::new(&[[0.0_f32, 0.0, 1.0]], &Device::Cpu).expect("tensor")).expect("rounded");
    let bias = Tensor::new(&[0.5_f32], &Device::Cpu).expect("tensor");
    let out = product(&x, &weight, &bias).and_then(|out| out.biased()?.to_vec2::<f32>()).expect("multiplied");
    assert!(
        out[0][0].is_nan() && (out[1][0] - 4.5).abs() < 1e-5 && out[2][0].is_nan() && out[3][0].is_nan(),
        "{out:?}"
    );
}

/// Codes are off by half a step at most, which is a sixteenth of a number, or half the smallest step.
#[test]
fn rounding_is_as_close_as_eight_bits_allow() {
    let x = random(1, 7, 208);
    let rounded = values(&Quantized::of(&x).expect("rounded"));
    for (row, rounded) in x.to_vec2::<f32>().expect("rows").iter().zip(rounded) {
        let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (value, rounded) in row.iter().zip(rounded) {
            let half_a_step = (value.abs() / 16.0).max(largest / 448.0 / 1024.0);
            assert!((value - rounded).abs() <= half_a_step * 1.000_01, "{value} became {rounded}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company_and_in_a_wider_matrix() {
    let x = random(2, 40, 96);
    let weight = Quantized::of(&random(3, 64, 96)).expect("rounded");
    let bias = random(4, 1, 64).flatten_all().expect("bias");
    let run = |x: &Tensor| {
        let x = Quantized::of(x).expect("rounded");
        product(&x, &weight, &bias).and_then(|out| out.biased()?.to_vec2::<f32>()).expect("multiplied")
    };
    let together = run(&x);
    for (first, count) in [(0, 1), (3, 1), (17, 9), (39, 1)] {
        assert_eq!(run(&x.narrow(0, first, count).expect("rows")), together[first..first + count]);
    }
    let wide = Tensor::cat(&[&random(5, 40, 8), &x], 1).expect("wide");
    assert_eq!(run(&wide.narrow(1, 8, 96).expect("columns")), together);
}

/// A product in eight bits is off by some percent: more would be a mistake, less would not be eight bits.
#[test]
fn a_product_is_near_the_exact_one() {
    let (x, weight) = (random(6, 33, 512), random(7, 48, 512));
    let bias = random(8, 1, 48).flatten_all().expect("bias");
    let exact = linear(&x, &weight, Some(&bias)).expect("linear");
    let (x, weight) = (Quantized::of(&x).expect("rounded"), Quantized::of(&weight).expect("rounded"));
    let rounded = product(&x, &weight, &bias).and_then(|out| out.biased()).expect("multiplied");
    let norm = |x: &Tensor| x.sqr().and_then(|x| x.sum_all()?.sqrt()?.to_scalar::<f32>()).expect("norm");
    let error = norm(&(rounded - &exact).expect("same shape")) / norm(&exact);
    assert!((0.005..0.06).contains(&error), "{error}");
}

#[test]
fn what_comes_before_a_product_is_rounded_as_it_is() {
    let segments = Segments::from_lengths([2, 3]);
    let (x, shift, scale) = (random(9, 5, 32), random(10, 2, 32), random(11, 2, 32));
    let normed = Quantized::of(&modulated_layer_norm(&x, &shift, &scale, &segments).expect("normed")).expect("rounded");
    let at_once = Quantized::of_layer_norm(&x, &shift, &scale, &segments).expect("rounded");
    assert_eq!((codes(&at_once), scales(&at_once)), (codes(&normed), scales(&normed)));
    let right = Product::from(random(12, 5, 48));
    let fed = Quantized::of(&beside_gelu_tanh(&x, &right).expect("fed")).expect("rounded");
    let at_once = Quantized::of_gelu_tanh(Some(&x), &right).expect("rounded");
    assert_eq!((codes(&at_once), scales(&at_once)), (codes(&fed), scales(&fed)));
    assert_eq!(at_once.codes.dims(), [5, 80]);
    assert_eq!(Quantized::of_gelu_tanh(None, &right).expect("rounded").codes.dims(), [5, 48]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, weight) = (Quantized::of(&random(13, 4, 16)).expect("x"), Quantized::of(&random(14, 8, 32)).expect("w"));
    let bias = random(15, 1, 16).narrow(1, 0, 8).expect("eight").flatten_all().expect("bias");
    let error = product(&x, &weight, &bias).map(drop).expect_err("16 and 32").to_string();
    assert!(error.contains("x has 16 columns, the weight is 8x32"), "{error}");
    assert_eq!(Quantized::bytes(8, 32), 8 * 32 + 4 * 8);
}
