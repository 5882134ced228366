//! From a checkpoint folder, in either published layout, to named tensors of known shapes.
//!
//! Nothing is loaded before everything has been checked: [`Checkpoint::open`] reads the configuration files and the
//! headers of the weight files, compares every tensor's name, shape and dtype with what the configuration calls for,
//! and reports all that is wrong at once.

mod backend;
pub(crate) mod config;
mod inventory;
mod report;
mod source;
mod weights;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::domain::model::ModelFiles;

use backend::CheckedTensors;
use config::Configs;
use inventory::Layout;
pub use report::{ComponentReport, Inspection, Problem};
use source::Source;
use weights::WeightFiles;

/// A checkpoint that cannot be used, with every reason that was found.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint in {place} cannot be used:{}", report::bullet_list(.problems))]
pub struct CheckpointError {
    /// The folder, or "the program itself".
    pub place: String,
    /// What is wrong; never empty.
    pub problems: Vec<Problem>,
}

/// A checkpoint whose files have all been found right. Tensors are read when they are asked for.
pub(crate) struct Checkpoint {
    pub(crate) configs: Configs,
    pub(crate) tokenizers: TokenizerFiles,
    transformer: CheckedTensors,
    vae: CheckedTensors,
    clip: CheckedTensors,
    t5: CheckedTensors,
}

/// The texts of the tokenizer files.
pub(crate) struct TokenizerFiles {
    /// `tokenizer/vocab.json`
    pub(crate) clip_vocabulary: String,
    /// `tokenizer/merges.txt`
    pub(crate) clip_merges: String,
    /// `tokenizer_2/tokenizer.json`
    pub(crate) t5: String,
}

/// Reads and compares everything but the weights' values, and says what was found.
#[must_use]
pub fn inspect(files: &ModelFiles) -> Inspection {
    examine(files).1
}

impl Checkpoint {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// When anything is missing, surplus, misshapen or unreadable.
    pub(crate) fn open(files: &ModelFiles) -> Result<Self, CheckpointError> {
        let (checkpoint, inspection) = examine(files);
        checkpoint
            .ok_or_else(|| CheckpointError { place: inspection.place.clone(), problems: inspection.into_problems() })
    }

    /// The transformer's tensors by their names in the single-file layout.
    pub(crate) fn transformer(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.transformer.builder(dtype, device)
    }

    /// The autoencoder's tensors by their names in the single-file layout.
    pub(crate) fn vae(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.vae.builder(dtype, device)
    }

    /// CLIP's tensors by their published names.
    pub(crate) fn clip(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.clip.builder(dtype, device)
    }

    /// T5's tensors by their published names.
    pub(crate) fn t5(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.t5.builder(dtype, device)
    }
}

fn examine(files: &ModelFiles) -> (Option<Checkpoint>, Inspection) {
    let source = Source::new(files);
    let mut inspection = Inspection::of(source);
    let configs = Configs::read(source, &mut inspection.problems);
    let tokenizers = TokenizerFiles::read(source, &mut inspection.problems);
    let Some(configs) = configs else {
        return (None, inspection);
    };
    let (layout, stem) = transformer_location(source);
    let expected = inventory::transformer(&configs.transformer, layout);
    let transformer = component(source, &mut inspection, "transformer", &stem, expected, inventory::none_ignored);
    let (layout, stem) = vae_location(source);
    let expected = inventory::vae(&configs.vae, layout);
    let vae = component(source, &mut inspection, "vae", &stem, expected, inventory::none_ignored);
    let expected = inventory::clip(&configs.clip);
    let clip = component(source, &mut inspection, "text_encoder", CLIP_STEM, expected, inventory::clip_ignored);
    let expected = inventory::t5(&configs.t5);
    let t5 = component(source, &mut inspection, "text_encoder_2", T5_STEM, expected, inventory::t5_ignored);
    let checkpoint = match (tokenizers, transformer, vae, clip, t5) {
        (Some(tokenizers), Some(transformer), Some(vae), Some(clip), Some(t5)) if inspection.is_sound() => {
            Some(Checkpoint { configs, tokenizers, transformer, vae, clip, t5 })
        }
        _ => None,
    };
    (checkpoint, inspection)
}

const CLIP_STEM: &str = "text_encoder/model";
const T5_STEM: &str = "text_encoder_2/model";
const TRANSFORMER_STEM: &str = "transformer/diffusion_pytorch_model";
const VAE_STEM: &str = "vae/diffusion_pytorch_model";

/// The folders win where both layouts are there: they carry their own configuration.
fn transformer_location(source: Source) -> (Layout, String) {
    if WeightFiles::exist(source, TRANSFORMER_STEM) {
        return (Layout::Diffusers, TRANSFORMER_STEM.to_owned());
    }
    let single = source.top_level_files().into_iter().find_map(|name| {
        let stem = name.strip_suffix(".safetensors")?;
        stem.starts_with("flux1-").then(|| stem.to_owned())
    });
    single.map_or((Layout::Diffusers, TRANSFORMER_STEM.to_owned()), |stem| (Layout::SingleFile, stem))
}

fn vae_location(source: Source) -> (Layout, String) {
    if !WeightFiles::exist(source, VAE_STEM) && WeightFiles::exist(source, "ae") {
        return (Layout::SingleFile, "ae".to_owned());
    }
    (Layout::Diffusers, VAE_STEM.to_owned())
}

/// Opens the weight files of one component and compares them with what is expected.
fn component(
    source: Source,
    inspection: &mut Inspection,
    name: &'static str,
    stem: &str,
    expected: Vec<inventory::Expected>,
    is_ignored: fn(&str) -> bool,
) -> Option<CheckedTensors> {
    let mut problems = Vec::new();
    let files = WeightFiles::open(source, stem, &mut problems);
    let checked = files.and_then(|files| CheckedTensors::check(files, expected, is_ignored, &mut problems));
    let report = match &checked {
        Some(checked) => checked.report(name),
        None => ComponentReport { name, files: Vec::new(), tensors: 0, bytes: 0, bytes_as_f32: 0, problems },
    };
    inspection.components.push(report);
    checked
}

impl TokenizerFiles {
    fn read(source: Source, problems: &mut Vec<Problem>) -> Option<Self> {
        let clip_vocabulary = source.required_text("tokenizer/vocab.json", problems);
        let clip_merges = source.required_text("tokenizer/merges.txt", problems);
        let t5 = source.required_text("tokenizer_2/tokenizer.json", problems);
        Some(Self { clip_vocabulary: clip_vocabulary?, clip_merges: clip_merges?, t5: t5? })
    }
}

/// The names under which the model asks for the transformer's tensors.
#[cfg(test)]
pub(super) fn transformer_names(config: &config::TransformerConfig) -> Vec<String> {
    inventory::transformer(config, Layout::SingleFile).into_iter().map(|tensor| tensor.name).collect()
}

/// The names under which the model asks for the autoencoder's tensors.
#[cfg(test)]
pub(super) fn vae_names(config: &config::VaeConfig) -> Vec<String> {
    inventory::vae(config, Layout::SingleFile).into_iter().map(|tensor| tensor.name).collect()
}
