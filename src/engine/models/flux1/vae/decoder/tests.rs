use std::path::Path;

use super::*;
use crate::domain::device::DeviceChoice;
use crate::domain::model::ModelFiles;
use crate::engine::FluxEngine;
use crate::engine::noise::standard_normal;
use candle_core::Device;

/// A checkpoint's decoder, which decodes every image as a whole.
fn decoder(folder: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let engine = FluxEngine::load(&ModelFiles::Directory(folder), DeviceChoice::Cpu).expect("loads");
    engine.model.decoder.with_whole_pixels_max(usize::MAX)
}

fn latents(rows: usize, columns: usize) -> Tensor {
    let numbers = standard_normal(1, 0, 16 * rows * columns);
    Tensor::from_vec(numbers, (1, 16, rows, columns), &Device::Cpu).expect("latents")
}

fn values(pixels: &Tensor) -> Vec<f32> {
    pixels.flatten_all().and_then(|pixels| pixels.to_vec1()).expect("values")
}

/// From one strip to several with a rest, wide and narrow.
#[test]
fn strips_give_the_bits_of_the_whole_image() {
    for folder in ["tests/reference/FLUX.1-dev", "models/flux-shapes"] {
        let whole = decoder(folder);
        let sizes = [(2, 4), (8, 6), (14, 10), (16, 32), (20, 16), (42, 2)];
        let expected = sizes.map(|(rows, columns)| values(&whole.decode(&latents(rows, columns)).expect("decodes")));
        let strips = whole.with_whole_pixels_max(0);
        for ((rows, columns), expected) in sizes.into_iter().zip(expected) {
            let found = strips.decode(&latents(rows, columns)).expect("decodes");
            assert!(values(&found) == expected, "{folder}, latents of {rows}x{columns}");
        }
    }
}

/// Beyond the limit, and only there.
#[test]
fn images_of_more_pixels_than_the_limit_are_in_strips() {
    let decoder = decoder("tests/reference/FLUX.1-dev").with_whole_pixels_max(64 * 64);
    let in_strips = |rows: usize, columns: usize| {
        let mut decoding = decoder.begin(&latents(rows, columns)).expect("begins");
        let (mut parts, mut are_strips) = (0, false);
        loop {
            let (advanced, is_left) = decoder.advance(decoding).expect("advances");
            decoding = advanced;
            if !is_left {
                return (parts, are_strips);
            }
            parts += 1;
            are_strips |= matches!(decoding.x, Activation::Strips(_));
        }
    };
    // Three blocks in the middle, and three in each of four levels with three upsamplings between them.
    assert_eq!(in_strips(8, 8), (18, false));
    assert_eq!(in_strips(8, 10), (16, true), "the last two upsamplings belong to the blocks behind them");
}
