//! Files as people have them, and damaged ones.

mod files;
mod made;
mod saved;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::domain::model::CompletedFiles;

/// The reference file `path`.
fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

fn recorded_rows() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(reference("quant/dequantised_rows.safetensors"), &Device::Cpu)
        .expect("a reference file")
}

/// The files of a recorded case.
fn files_of(case: &str) -> ModelFiles {
    let (path, encoder, base) = match case {
        "nf4" => ("quant/FLUX.1-dev-nf4", None, true),
        "fp8-cast" => ("quant/fp8/flux1-dev-fp8-e4m3fn.safetensors", None, true),
        "fp8-scaled" => ("quant/fp8/flux1-dev-fp8-scaled.safetensors", None, true),
        "fp8-aio" => ("quant/fp8/flux1-dev-fp8-aio.safetensors", None, true),
        "t5-fp16" => ("FLUX.1-dev", Some("quant/fp8/t5xxl_fp16.safetensors"), false),
        "t5-fp8" => ("FLUX.1-dev", Some("quant/fp8/t5xxl_fp8_e4m3fn.safetensors"), false),
        "t5-fp8-scaled" => ("FLUX.1-dev", Some("quant/fp8/t5xxl_fp8_e4m3fn_scaled.safetensors"), false),
        "t5-fp8-comfy-quant" => ("FLUX.1-dev", Some("quant/fp8/t5xxl_fp8_comfy_quant.safetensors"), false),
        "clip-l" => ("FLUX.1-dev", Some("quant/fp8/clip_l.safetensors"), false),
        "tiny-flux-mixed" => ("quant/FLUX.1-dev-256/tiny-flux-mixed.gguf", None, false),
        "tiny-flux-Q2_K" => ("quant/FLUX.1-dev-256/tiny-flux-Q2_K.gguf", None, false),
        "tiny-flux-Q4_K_S" => ("quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf", None, false),
        "t5-gguf" => {
            let encoder = "quant/FLUX.1-dev-256/t5-v1_1-tiny-encoder-Q4_K_M.gguf";
            ("quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf", Some(encoder), false)
        }
        other => panic!("the files of {other}"),
    };
    ModelFiles::Completed(Box::new(CompletedFiles {
        path: reference(path),
        text_encoders: encoder.map(reference).into_iter().collect(),
        vae: None,
        attachments: crate::domain::model::Attachments::default(),
        base: base.then(|| ModelFiles::Directory(reference("FLUX.1-dev"))),
    }))
}

/// Where a tensor of the diffusers layout is in the model's: its name there, and the row where it begins.
fn place_of(modules: &[Module], name: &str) -> (String, usize) {
    for tensor in inventory::tensors_of(modules, Layout::Diffusers) {
        let mut row = if tensor.swap_halves { tensor.shape[0] / 2 } else { 0 };
        for part in &tensor.parts {
            if part.name == name {
                return (tensor.name, row);
            }
            row += part.shape[0];
        }
    }
    panic!("{name} is in no table")
}

#[test]
fn every_recorded_row_has_the_bits_of_the_reference() {
    let mut checkpoints = BTreeMap::new();
    let rows = recorded_rows();
    for (key, expected) in &rows {
        let (case, name) = key.split_once('/').expect("a case and a name");
        let checkpoint = checkpoints
            .entry(case.to_owned())
            .or_insert_with(|| Checkpoint::open(&files_of(case)).unwrap_or_else(|error| panic!("{case}: {error}")));
        let component = match () {
            () if name.starts_with("text_model.") => Component::Clip,
            () if name.starts_with("encoder.") || name == "shared.weight" => Component::T5,
            () => Component::Transformer,
        };
        let tensors = match component {
            Component::Clip => &checkpoint.clip,
            Component::T5 => &checkpoint.t5,
            _ => &checkpoint.transformer,
        };
        let (tensor, row) = place_of(&component.modules(&checkpoint.configs), name);
        let found = tensors.recipe(&tensor, DType::F32).and_then(|recipe| recipe.read_to_host()).expect("a tensor");
        let found = found.get(row + 1).and_then(|row| row.to_vec1::<f32>()).expect("a row");
        let expected = expected.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        let same = found.iter().zip(&expected).all(|(found, expected)| found.to_bits() == expected.to_bits());
        assert!(same && found.len() == expected.len(), "{key}: {:?} {:?}", &found[..4], &expected[..4]);
    }
    assert_eq!((rows.len(), checkpoints.len()), (236, 13), "every recorded row");
}
