use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::bitsandbytes::{four_bits, int8, nested_scale};
use super::*;

const ALL: [(&str, BlockType); 16] = [
    ("F16", BlockType::F16),
    ("BF16", BlockType::Bf16),
    ("F8_E4M3", BlockType::F8E4M3),
    ("F8_E5M2", BlockType::F8E5M2),
    ("Q4_0", BlockType::Q4_0),
    ("Q4_1", BlockType::Q4_1),
    ("Q5_0", BlockType::Q5_0),
    ("Q5_1", BlockType::Q5_1),
    ("Q8_0", BlockType::Q8_0),
    ("Q2_K", BlockType::Q2K),
    ("Q3_K", BlockType::Q3K),
    ("Q4_K", BlockType::Q4K),
    ("Q5_K", BlockType::Q5K),
    ("Q6_K", BlockType::Q6K),
    ("IQ4_NL", BlockType::Iq4Nl),
    ("IQ4_XS", BlockType::Iq4Xs),
];

fn recorded() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/quant/blocks.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).expect("a reference file")
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn every_block_has_the_bits_of_the_reference() {
    let recorded = recorded();
    for (name, kind) in ALL {
        let raw = &recorded[&format!("{name}.raw")];
        let raw = raw.flatten_all().and_then(|flat| flat.to_vec1::<u8>()).expect("bytes");
        let expected = &recorded[&format!("{name}.f32")];
        let expected = expected.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        assert_eq!(raw.len() / kind.bytes() * kind.numbers(), expected.len(), "{name}");
        let mut found = vec![f32::NAN; expected.len()];
        kind.decode(&raw, &mut found);
        let off = found.iter().zip(&expected).position(|(found, expected)| !same(*found, *expected));
        assert_eq!(off.map(|at| (at, found[at], expected[at])), None, "{name}: (at, here, reference)");
    }
    let types = recorded.keys().filter(|name| name.rsplit_once('.').is_some_and(|(_, end)| end == "raw")).count();
    assert_eq!(types, ALL.len(), "every recorded type");
}

#[test]
fn a_plain_number_is_itself() {
    let mut out = [0.0; 2];
    BlockType::F32.decode(&[1.5_f32.to_le_bytes(), (-0.0_f32).to_le_bytes()].concat(), &mut out);
    assert_eq!(out.map(f32::to_bits), [1.5_f32.to_bits(), (-0.0_f32).to_bits()]);
}

#[test]
fn four_bits_are_read_high_half_first_and_scaled_by_blocks_of_the_flattened_matrix() {
    let levels: [f32; 16] = std::array::from_fn(|level| level as f32);
    let mut out = [0.0; 4];
    four_bits(&[0x1f, 0x20], &levels, (62, 64), &[1.0, 10.0], &mut out);
    assert_eq!(out, [1.0, 15.0, 20.0, 0.0]);
    let nested: [f32; 256] = std::array::from_fn(|level| level as f32 / 255.0);
    assert_eq!(nested_scale(255, &nested, 3.0, 0.5), 3.5);
    assert_eq!(nested_scale(0, &nested, 3.0, 0.5), 0.5);
}

#[test]
fn eight_bits_are_scaled_by_their_row() {
    let mut out = [0.0; 4];
    int8(&[127, 0, 0x81, 1], 2.54, &mut out);
    let step = 1.0 / 127.0_f32;
    assert_eq!(out, [127.0 * 2.54 * step, 0.0, -127.0 * 2.54 * step, 2.54 * step]);
    assert!((out[0] - 2.54).abs() < 1e-6);
}
