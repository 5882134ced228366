//! Noise and schedules.

use serde::Deserialize;

use super::support::{diffusers_folders, json, tensors};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::models::flux1::schedule;
use crate::engine::noise;

#[test]
fn noise_has_the_bits_of_torch() {
    for (name, expected) in tensors("torch_noise.safetensors") {
        let Some(rest) = name.strip_prefix("f32.seed") else { continue };
        let (seed, _) = rest.split_once('.').expect("seed and shape");
        let expected = expected.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        let seed = seed.parse().expect("a seed");
        let found = noise::standard_normal(seed, 0, expected.len());
        let different = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(different, 0, "{name}: {different} of {} numbers differ", expected.len());
        let half = expected.len() / 2;
        assert_eq!(noise::standard_normal(seed, half, half), found[half..], "skipping");
    }
}

#[derive(Deserialize)]
struct ScheduleCase {
    steps: usize,
    image_seq_len: usize,
    mu: f64,
    sigmas: Vec<f32>,
}

#[test]
fn schedules_equal_diffusers() {
    let checkpoint = Checkpoint::open(&diffusers_folders()).expect("opens");
    let scheduler = &checkpoint.configs.scheduler;
    for case in json::<Vec<ScheduleCase>>("schedules.json") {
        assert!((schedule::mu(scheduler, case.image_seq_len) - case.mu).abs() < 1e-12);
        let found = schedule::sigmas(scheduler, case.image_seq_len, case.steps);
        assert_eq!(found.len(), case.sigmas.len());
        let differences = found.iter().zip(&case.sigmas).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) <= 1e-6, "{} tokens, {} steps", case.image_seq_len, case.steps);
    }
}
