//! The cards and the checkpoint that are compiled into the program. A card that does not parse is an error of the build,
//! which the tests catch.

use serde::Deserialize;

use crate::domain::conditioning::{AttachedCards, Conditioning};
use crate::domain::ids::ModelId;
use crate::domain::model::{EmbeddedFile, ModelCard, ModelFiles, ParameterDefaults, ParameterLimits};

const FLUX_DEV: &str = include_str!("../../models/FLUX.1-dev.toml");
/// All cards but FLUX.1-dev's.
const CARDS: [&str; 8] = [
    include_str!("../../models/FLUX.1-Canny-dev.toml"),
    include_str!("../../models/FLUX.1-Depth-dev.toml"),
    include_str!("../../models/FLUX.1-Fill-dev.toml"),
    include_str!("../../models/FLUX.1-Kontext-dev.toml"),
    include_str!("../../models/FLUX.1-Krea-dev.toml"),
    include_str!("../../models/FLUX.1-schnell.toml"),
    include_str!("../../models/FLUX.2-klein-4B.toml"),
    include_str!("../../models/flux-shapes.toml"),
];
const FLUX_SHAPES_ID: &str = "fluxserve/flux-shapes";

macro_rules! flux_shapes_files {
    ($($path:literal)*) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../../models/flux-shapes/", $path)) }),*]
    };
}

/// The files that FLUX's pipeline reads, without those of the training.
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
    not_yet: Option<String>,
    notice: Option<String>,
    #[serde(default)]
    conditioning: Conditioning,
    input_images_min: usize,
    input_images_max: usize,
    prompt_chars_max: usize,
    sequence_length: usize,
    true_cfg_scale: f64,
    defaults: ParameterDefaults,
    limits: ParameterLimits,
    licence: Licence,
}

/// License of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// Its name.
    pub name: String,
    /// Where to read it.
    pub url: String,
}

/// A model whose card is compiled into the program.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Its card.
    pub card: ModelCard,
    /// License of its weights.
    pub licence: Licence,
    /// Why this program cannot run it, if it cannot.
    pub not_yet: Option<String>,
}

fn read(text: &str) -> KnownModel {
    let file: CardFile = toml::from_str(text).expect("a card of models/ is valid");
    let card = ModelCard {
        id: file.id,
        notice: file.notice,
        defaults: file.defaults,
        limits: file.limits,
        conditioning: file.conditioning,
        attached: AttachedCards::default(),
        input_images_min: file.input_images_min,
        input_images_max: file.input_images_max,
        prompt_chars_max: file.prompt_chars_max,
        sequence_length: file.sequence_length,
        true_cfg_scale: file.true_cfg_scale,
    };
    KnownModel { card, licence: file.licence, not_yet: file.not_yet }
}

/// The models of `models/`, ordered by id.
pub fn known_models() -> Vec<KnownModel> {
    let mut known: Vec<_> = CARDS.iter().copied().chain([FLUX_DEV]).map(read).collect();
    known.sort_by(|left, right| left.card.id.cmp(&right.card.id));
    known
}

/// A model of `models/`.
pub fn known_model(id: &ModelId) -> Option<KnownModel> {
    known_models().into_iter().find(|known| known.card.id == *id)
}

/// The card of FLUX.1-dev.
pub(super) fn flux_dev() -> ModelCard {
    read(FLUX_DEV).card
}

/// The checkpoint of a model that is compiled into the program.
pub fn embedded_files(id: &ModelId) -> Option<ModelFiles> {
    (id.as_str() == FLUX_SHAPES_ID).then_some(ModelFiles::Embedded(FLUX_SHAPES_FILES))
}
