//! Blocks that are read for each step, modulations that are read for several, and T5's blocks: the bits of those that stay in
//! memory.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::quantized::kinds;
use super::support::{card, diffusers_folders, single_files};
use crate::domain::model::ModelFiles;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::adapted::AdapterSet;
use crate::engine::checkpoint::{Checkpoint, LoadOptions, StreamedBlocks};
use crate::engine::models::flux1::{Flux1, Image, Residency, Weights};

fn model(files: &ModelFiles, precision: Precision, are_stored: bool, resident: Option<usize>) -> Flux1 {
    let checkpoint = Checkpoint::open(files).expect("opens");
    let config = &checkpoint.configs.transformer;
    let (double, total) = (config.num_layers, config.num_layers + config.num_single_layers);
    let blocks = resident.map(|resident| StreamedBlocks { resident, double, total });
    let is_text_streamed = blocks.is_some();
    let options = LoadOptions { dtype: DType::F32, is_text_streamed, are_stored, is_e4m3_kept: false, blocks };
    let loading = checkpoint.load_onto(&Device::Cpu, options, Arc::new(())).expect("begins");
    let weights = Weights {
        decoder: loading.decoder(),
        encoder: loading.encoder(),
        clip: loading.clip(),
        t5: loading.t5(),
        transformer: loading.transformer(),
        controlnets: loading.controlnets(),
    };
    let residency = Residency { precision, is_text_streamed, blocks, whole_pixels_max: usize::MAX };
    let (configs, tokenizers) = (checkpoint.configs.clone(), Arc::clone(&checkpoint.tokenizers));
    let model = Flux1::load(configs, tokenizers, weights, residency).expect("loads");
    loading.finish().expect("finishes");
    model
}

fn specs() -> Vec<GenerateSpec> {
    let spec = |(width, height, seed)| {
        let params = GenerateParams {
            prompt: "a red circle on a blue background".to_owned(),
            width: Some(width),
            height: Some(height),
            steps: Some(3),
            sequence_length: Some(32),
            seed,
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card()).expect("a valid request")
    };
    [(64, 64, 1), (96, 64, 2), (32, 48, 3)].into_iter().map(spec).collect()
}

/// The latents of all steps, of all images together.
fn latents(model: &mut Flux1) -> Vec<u32> {
    let mut images: Vec<Image> =
        specs().iter().map(|spec| model.admit(spec, AdapterSet::default()).expect("admits")).collect();
    let mut bits = Vec::new();
    while !images[0].is_done() {
        model.modulate_ahead(&mut images.iter_mut().collect::<Vec<_>>()).expect("modulates");
        let stepped = model.step(&images.iter().collect::<Vec<_>>()).expect("steps");
        for (image, stepped) in images.iter_mut().zip(stepped) {
            image.advance(stepped);
            let numbers = image.latents.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("numbers");
            bits.extend(numbers.into_iter().map(f32::to_bits));
        }
    }
    bits
}

#[test]
fn latents_have_the_same_bits_wherever_the_blocks_are() {
    let mut files = kinds();
    files.extend([diffusers_folders(), single_files()]);
    for files in files {
        let (full, bf16) = (Precision::Full, Precision::Bf16);
        for (precision, are_stored) in [(full, false), (full, true), (bf16, false), (bf16, true)] {
            let model = |resident| model(&files, precision, are_stored, resident);
            let expected = latents(&mut model(None));
            assert!(!expected.is_empty());
            // None stays, some do, all do and the modulations do not.
            for resident in [0, 2, 5] {
                let found = latents(&mut model(Some(resident)));
                assert!(found == expected, "{files:?}, {precision}, stored: {are_stored}, {resident} blocks in memory");
            }
        }
    }
}
