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

/// The values of a quantized matrix.
fn values(x: &Quantized) -> Vec<Vec<f32>> {
    let rows = codes(x).into_iter().zip(scales(x));
    rows.map(|(row, scale)| row.into_iter().map(|code| e4m3::VALUES[usize::from(code)] * scale).collect()).collect()
}

fn of_rows<const N: usize>(rows: &[[f32; 3]; N]) -> Quantized {
    Quantized::of(&Tensor::new(rows, &Device::Cpu).expect("tensor")).expect("quantized")
}

#[test]
fn the_largest_of_a_row_becomes_the_largest_code() {
    let x = of_rows(&[[448.0, -448.0, 17.0], [0.0, -1.0, 0.5], [1e38, 3e38, 1.0]]);
    assert_eq!(scales(&x), [1.0, 1.0 / 448.0, 3e38 / 448.0]);
    // 17 is a tie between 16 and 18, of which 16 is even.
    assert_eq!(values(&x)[0], [448.0, -448.0, 16.0]);
    assert_eq!(codes(&x)[1], [0x00, 0xfe, 0x76]);
    assert_eq!(codes(&x)[2][1..], [0x7e, 0x00]);
    assert!(values(&x).concat().iter().all(|value| value.is_finite()));
}

#[test]
fn numbers_with_one_scale_are_quantized_as_one_row() {
    let matrix = random(3, 1, 5120);
    let row = Quantized::of(&matrix).expect("quantized");
    let numbers = matrix.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
    let (scale, found) = with_one_scale(&numbers);
    assert_eq!((vec![scale], vec![found]), (scales(&row), codes(&row)));
    assert!(with_one_scale(&[1.0, f32::NAN]).0.is_nan() && with_one_scale(&[f32::NEG_INFINITY]).0.is_nan());
    assert_eq!(with_one_scale(&[0.0, -0.0]), (1.0, vec![0x00, 0x80]));
    assert_eq!(with_one_scale(&[]), (1.0, Vec::new()));
}

#[test]
fn a_row_of_tiny_values_becomes_zeros() {
    let below = SMALLEST_SCALED.next_down();
    let x = of_rows(&[[0.0, -0.0, 0.0], [below, -below, 1e-45], [SMALLEST_SCALED, -SMALLEST_SCALED, 0.0]]);
    assert_eq!(scales(&x), [1.0, 1.0, f32::MIN_POSITIVE]);
    assert_eq!(codes(&x), [[0x00, 0x80, 0x00], [0x00, 0x80, 0x00], [0x7e, 0xfe, 0x00]]);
}

#[test]
fn a_value_that_is_not_finite_makes_its_row_nan_and_no_other() {
    let x = of_rows(&[[1.0, f32::NAN, 0.0], [1.0, 2.0, 4.0], [f32::INFINITY, 1.0, 0.0], [0.0, f32::NEG_INFINITY, 1.0]]);
    assert_eq!(scales(&x).iter().map(|scale| scale.is_nan()).collect::<Vec<_>>(), [true, false, true, true]);
    let weight = Quantized::of(&Tensor::new(&[[0.0_f32, 0.0, 1.0]], &Device::Cpu).expect("tensor")).expect("quantized");
    let bias = Tensor::new(&[0.5_f32], &Device::Cpu).expect("tensor");
    let out = product(&x, &weight, Some(&bias)).and_then(|out| out.biased()?.to_vec2::<f32>()).expect("multiplied");
    assert!(
        out[0][0].is_nan() && (out[1][0] - 4.5).abs() < 1e-5 && out[2][0].is_nan() && out[3][0].is_nan(),
        "{out:?}"
    );
}

/// Codes are off by at most half a step, which is a sixteenth of a number, or half the smallest step.
#[test]
fn rounding_is_as_close_as_e4m3_allows() {
    let x = random(1, 7, 208);
    let rounded = values(&Quantized::of(&x).expect("quantized"));
    for (row, rounded) in x.to_vec2::<f32>().expect("rows").iter().zip(rounded) {
        let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (value, rounded) in row.iter().zip(rounded) {
            let half_a_step = (value.abs() / 16.0).max(largest / 448.0 / 1024.0);
            assert!((value - rounded).abs() <= half_a_step * 1.000_01, "{value} became {rounded}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_batched_and_in_a_wider_matrix() {
    let x = random(2, 40, 96);
    let weight = Quantized::of(&random(3, 64, 96)).expect("quantized");
    let bias = random(4, 1, 64).flatten_all().expect("bias");
    let run = |x: &Tensor| {
        let x = Quantized::of(x).expect("quantized");
        product(&x, &weight, Some(&bias)).and_then(|out| out.biased()?.to_vec2::<f32>()).expect("multiplied")
    };
    let batched = run(&x);
    for (first, count) in [(0, 1), (3, 1), (17, 9), (39, 1)] {
        assert_eq!(run(&x.narrow(0, first, count).expect("rows")), batched[first..first + count]);
    }
    let wide = Tensor::cat(&[&random(5, 40, 8), &x], 1).expect("wide");
    assert_eq!(run(&wide.narrow(1, 8, 96).expect("columns")), batched);
}

/// A GEMM in e4m3 is off by some percent: more would be a mistake, less would not be e4m3.
#[test]
fn a_product_in_fp8_is_near_the_exact_one() {
    let (x, weight) = (random(6, 33, 512), random(7, 48, 512));
    let bias = random(8, 1, 48).flatten_all().expect("bias");
    let exact = linear(&x, &weight, Some(&bias)).expect("linear");
    let (x, weight) = (Quantized::of(&x).expect("quantized"), Quantized::of(&weight).expect("quantized"));
    let rounded = product(&x, &weight, Some(&bias)).and_then(|out| out.biased()).expect("multiplied");
    let norm = |x: &Tensor| x.sqr().and_then(|x| x.sum_all()?.sqrt()?.to_scalar::<f32>()).expect("norm");
    let error = norm(&(rounded - &exact).expect("same shape")) / norm(&exact);
    assert!((0.005..0.06).contains(&error), "{error}");
}

#[test]
fn fused_quantization_equals_quantizing_afterwards() {
    let segments = Segments::from_lengths([2, 3]);
    let (x, shift, scale) = (random(9, 5, 32), random(10, 2, 32), random(11, 2, 32));
    let normed =
        Quantized::of(&modulated_layer_norm(&x, &shift, &scale, &segments).expect("normed")).expect("quantized");
    let at_once = Quantized::of_layer_norm(&x, &shift, &scale, &segments).expect("quantized");
    assert_eq!((codes(&at_once), scales(&at_once)), (codes(&normed), scales(&normed)));
    let right = MatrixProduct::from(random(12, 5, 48));
    let fed = Quantized::of(&beside_gelu_tanh(&x, &right).expect("fed")).expect("quantized");
    let at_once = Quantized::of_gelu_tanh(Some(&x), &right).expect("quantized");
    assert_eq!((codes(&at_once), scales(&at_once)), (codes(&fed), scales(&fed)));
    assert_eq!(at_once.codes.dims(), [5, 80]);
    assert_eq!(Quantized::of_gelu_tanh(None, &right).expect("quantized").codes.dims(), [5, 48]);
}

/// Codes and scales of a file, of two matrices that are joined in one.
fn of_a_file(rows: usize, width: usize) -> (Tensor, Vec<f32>) {
    let codes: Vec<u8> = (0..rows * width).map(|at| (at * 37 % 256) as u8 & 0xbf).collect();
    let scales = (0..rows).map(|row| if row < rows / 3 { -0.003 } else { 1.75 }).collect();
    (Tensor::from_vec(codes, (rows, width), &Device::Cpu).expect("codes"), scales)
}

#[test]
fn a_product_with_codes_of_a_file_is_that_of_the_numbers_they_stand_for() {
    let (rows, inner, columns) = (21, 96, 33);
    let (file_codes, file_scales) = of_a_file(columns, inner);
    let weight = Quantized::from_codes(file_codes.clone(), &file_scales).expect("a matrix");
    // As they are in the file.
    assert_eq!((codes(&weight), scales(&weight)), (file_codes.to_vec2::<u8>().expect("codes"), file_scales));
    let (x, bias) = (random(16, rows, inner), random(17, 1, 48).narrow(1, 0, columns).expect("some"));
    let bias = bias.flatten_all().expect("bias");
    let x_quantized = Quantized::of(&x).expect("quantized");
    let run = |x: &Quantized| {
        product(x, &weight, Some(&bias)).and_then(|out| out.biased()?.to_vec2::<f32>()).expect("multiplied")
    };
    let found = run(&x_quantized);
    let biases = bias.to_vec1::<f32>().expect("biases");
    for (x_row, row) in values(&x_quantized).iter().zip(&found) {
        for ((weight_row, found), bias) in values(&weight).iter().zip(row).zip(&biases) {
            let terms = || x_row.iter().zip(weight_row).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
            let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let off = (f64::from(*found) - (sum + f64::from(*bias))).abs();
            assert!(off <= 1e-5 * (size + f64::from(bias.abs())), "{found} instead of {}", sum + f64::from(*bias));
        }
    }
    for (row, found) in found.iter().enumerate() {
        let alone = Quantized::of(&x.narrow(0, row, 1).expect("a row")).expect("quantized");
        assert_eq!(&run(&alone)[0], found, "row {row}");
    }
}

#[test]
fn codes_without_a_scale_for_each_row_are_rejected() {
    let (codes, scales) = of_a_file(6, 16);
    let refused =
        |codes: Tensor, scales: &[f32]| Quantized::from_codes(codes, scales).expect_err("no matrix").to_string();
    assert!(refused(codes.clone(), &scales[1..]).contains("[6, 16] of U8 and 5 scales"), "one is missing");
    refused(codes.t().expect("transposed"), &[1.0; 16]);
    refused(codes.to_dtype(DType::F32).expect("converted"), &scales);
    refused(codes.flatten_all().expect("flat"), &scales);
}

#[test]
fn shapes_that_do_not_fit_are_rejected() {
    let (x, weight) = (Quantized::of(&random(13, 4, 16)).expect("x"), Quantized::of(&random(14, 8, 32)).expect("w"));
    let bias = random(15, 1, 16).narrow(1, 0, 8).expect("eight").flatten_all().expect("bias");
    let error = product(&x, &weight, Some(&bias)).map(drop).expect_err("16 and 32").to_string();
    assert!(error.contains("x has 16 columns, the weight is 8x32"), "{error}");
    assert_eq!(Quantized::bytes(8, 32), 8 * 32 + 4 * 8);
}

#[test]
fn the_trial_of_a_device_passes_on_the_cpu() {
    try_on(&Device::Cpu, DType::F32).expect("the CPU multiplies e4m3");
}
