//! Both published layouts.

use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::support::{diffusers_folders, single_files};
use crate::domain::model::ModelFiles;
use crate::engine::checkpoint::{Checkpoint, LoadOptions, tensor_names};

#[test]
fn both_layouts_have_the_same_tensors() {
    let open = |files: &ModelFiles| Checkpoint::open(files).expect("opens");
    let (folders, singles) = (open(&diffusers_folders()), open(&single_files()));
    let [transformer, vae] = tensor_names(&folders.configs);
    let equal = |a: &VarBuilder, b: &VarBuilder, name: &str| {
        let read = |vb: &VarBuilder| {
            let tensor = vb.get_unchecked(name).expect("a tensor");
            (tensor.dims().to_vec(), tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers"))
        };
        assert_eq!(read(a), read(b), "{name}");
    };
    let options = LoadOptions {
        dtype: DType::F32,
        is_text_streamed: false,
        are_stored: false,
        is_e4m3_kept: false,
        blocks: None,
    };
    let load = |checkpoint| Checkpoint::load_onto(checkpoint, &Device::Cpu, options, Arc::new(()));
    let (folders, singles) = (load(&folders).expect("loads"), load(&singles).expect("loads"));
    let (a, b) = (folders.transformer(), singles.transformer());
    for tensor in transformer {
        equal(a.full(), b.full(), &tensor);
    }
    // Each half's builder has the tensors of both.
    let (a, b) = (folders.decoder(), singles.decoder());
    for tensor in vae {
        equal(&a, &b, &tensor);
    }
}
