//! What adapters add, against the recorded products of it with fixed vectors, which `make_deltas.py` computes.

use super::*;

/// By how much a product may differ, as a part of the change's norm: f32 here, f64 there.
const TOLERANCE: f64 = 1e-5;

/// A fixed vector; `make_deltas.py` has the same.
fn wave(count: usize, number: u64) -> Vec<f64> {
    (0..count as u64)
        .map(|index| f64::from(((index * 7919 + number * 104_729 + 17) % 65_521) as u32) / 65_521.0 - 0.5)
        .collect()
}

/// The norm of a change, and its products with fixed vectors.
fn recorded(change: &[f32], rows: usize) -> [f64; 4] {
    let columns = change.len() / rows;
    let norm = change.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    let product = |number: u64| -> f64 {
        let (left, right) = (wave(rows, number), wave(columns, number + 10));
        let of_row = |row: &[f32]| row.iter().zip(&right).map(|(one, other)| f64::from(*one) * other).sum::<f64>();
        change.chunks_exact(columns).zip(left).map(|(row, factor)| factor * of_row(row)).sum()
    };
    [norm, product(0), product(1), product(2)]
}

/// Outputs of a module, by the name that a record has for it.
fn rows_of(name: &str) -> usize {
    let module = name.strip_suffix(".scale").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    model().0.find(module).unwrap_or_else(|| panic!("{name}")).module.outputs
}

#[test]
fn every_recorded_adapter_adds_what_it_must() {
    let text = std::fs::read_to_string(reference("lora/deltas.json")).expect("readable");
    let files: BTreeMap<String, BTreeMap<String, [f64; 4]>> = serde_json::from_str(&text).expect("records");
    assert_eq!(files.len(), 43, "adapters are recorded");
    let mut modules = 0;
    for (file, expected) in files {
        let found = differences(&adapter(&file));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{file}");
        for (name, expected) in expected {
            let found = recorded(&found[&name], rows_of(&name));
            for (found, expected_one) in found.iter().zip(expected) {
                let distance = (found - expected_one).abs();
                assert!(distance <= TOLERANCE * expected[0], "{file}, {name}: {found} for {expected_one}");
            }
            assert!(expected[0] > 0.0, "{file}, {name}: a change");
            modules += 1;
        }
    }
    assert!(modules > 500, "{modules} modules are compared");
}

/// Compares number by number.
fn assert_equal(one: &str, other: &str, tolerance: f32) {
    let (first, second) = (differences(&adapter(one)), differences(&adapter(other)));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>(), "{one}, {other}");
    for (name, numbers) in first {
        for (index, (number, twin)) in numbers.iter().zip(&second[&name]).enumerate() {
            assert!((number - twin).abs() <= tolerance, "{one}, {name}, {index}: {number} and {twin}");
        }
    }
}

#[test]
fn the_same_change_in_fused_and_split_names_is_the_same() {
    assert_equal("b1_kohya", "b1_peft_twin", 1e-7);
    assert_equal("b2_kohya_split_qkv", "b2_peft_twin", 1e-6);
}

#[test]
fn unknown_tensors_leave_the_known_ones_as_they_are() {
    assert_equal("j6_known_part", "j6_partly_unknown", 0.0);
}
