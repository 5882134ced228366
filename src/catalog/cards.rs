//! The cards and the checkpoint that are compiled into the program. A card that cannot be read is a mistake of the
//! build, which the tests catch.

use include_dir::{Dir, include_dir};
use serde::Deserialize;

use crate::domain::ids::ModelId;
use crate::domain::model::{EmbeddedFile, ModelCard, ModelFiles, ParameterDefaults, ParameterLimits};

const FLUX_DEV: &str = include_str!("../../models/FLUX.1-dev.toml");
const FLUX_RANDOM: &str = include_str!("../../models/flux-random.toml");
const FLUX_RANDOM_ID: &str = "fluxserve/flux-random";
static FLUX_RANDOM_FILES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/models/flux-random");

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
    vec![flux_dev(), read(FLUX_RANDOM)]
}

/// The card of FLUX.1-dev.
pub(super) fn flux_dev() -> ModelCard {
    read(FLUX_DEV)
}

/// The checkpoint of a model that is compiled into the program.
pub fn embedded_files(id: &ModelId) -> Option<ModelFiles> {
    if id.as_str() != FLUX_RANDOM_ID {
        return None;
    }
    let mut files = Vec::new();
    collect(&FLUX_RANDOM_FILES, &mut files);
    Some(ModelFiles::Embedded(files))
}

fn collect(folder: &'static Dir<'static>, files: &mut Vec<EmbeddedFile>) {
    for file in folder.files() {
        let path = file.path().to_str().expect("file names of models/ are plain ASCII");
        files.push(EmbeddedFile { path, bytes: file.contents() });
    }
    for inner in folder.dirs() {
        collect(inner, files);
    }
}
