//! The cards and the checkpoint that are compiled into the program. A card that cannot be read is a mistake of the
//! build, which the tests catch.

use serde::Deserialize;

use crate::domain::ids::ModelId;
use crate::domain::model::{EmbeddedFile, ModelCard, ModelFiles, ParameterDefaults, ParameterLimits};

const FLUX_DEV: &str = include_str!("../../models/FLUX.1-dev.toml");
const FLUX_SHAPES: &str = include_str!("../../models/flux-shapes.toml");
const FLUX_SHAPES_ID: &str = "fluxserve/flux-shapes";

macro_rules! flux_shapes_files {
    ($($path:literal)*) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../../models/flux-shapes/", $path)) }),*]
    };
}

/// What FLUX's pipeline reads, and not how it was trained.
const FLUX_SHAPES_FILES: &[EmbeddedFile] = flux_shapes_files!(
    "model_index.json"
    "scheduler/scheduler_config.json"
    "text_encoder/config.json"
    "text_encoder/model.safetensors"
    "text_encoder_2/config.json"
    "text_encoder_2/model.safetensors"
    "tokenizer/merges.txt"
    "tokenizer/tokenizer_config.json"
    "tokenizer/vocab.json"
    "tokenizer_2/tokenizer.json"
    "tokenizer_2/tokenizer_config.json"
    "transformer/config.json"
    "transformer/diffusion_pytorch_model.safetensors"
    "vae/config.json"
    "vae/diffusion_pytorch_model.safetensors"
);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardFile {
    id: ModelId,
    notice: Option<String>,
    input_images_min: usize,
    input_images_max: usize,
    prompt_chars_max: usize,
    sequence_length: usize,
    true_cfg_scale: f64,
    defaults: ParameterDefaults,
    limits: ParameterLimits,
}

fn read(text: &str) -> ModelCard {
    let file: CardFile = toml::from_str(text).expect("a card of models/ is valid");
    ModelCard {
        id: file.id,
        notice: file.notice,
        defaults: file.defaults,
        limits: file.limits,
        input_images_min: file.input_images_min,
        input_images_max: file.input_images_max,
        prompt_chars_max: file.prompt_chars_max,
        sequence_length: file.sequence_length,
        true_cfg_scale: file.true_cfg_scale,
    }
}

/// The cards of `models/`.
pub(super) fn built_in() -> Vec<ModelCard> {
    vec![flux_dev(), read(FLUX_SHAPES)]
}

/// The card of FLUX.1-dev.
pub(super) fn flux_dev() -> ModelCard {
    read(FLUX_DEV)
}

/// The checkpoint of a model that is compiled into the program.
pub fn embedded_files(id: &ModelId) -> Option<ModelFiles> {
    (id.as_str() == FLUX_SHAPES_ID).then_some(ModelFiles::Embedded(FLUX_SHAPES_FILES))
}
