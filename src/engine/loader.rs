//! From a checkpoint folder, in either published layout, to named tensors of known shapes.
//!
//! Nothing is loaded before everything has been checked: [`Checkpoint::open`] reads the configuration files and the
//! headers of the weight files, compares every tensor's name, shape and dtype with what the configuration calls for,
//! and reports all that is wrong at once.

mod backend;
pub(crate) mod config;
mod inventory;
mod loading;
mod recipe;
mod report;
mod source;
mod stream;
mod values;
mod weights;

use candle_core::DType;

use crate::domain::model::ModelFiles;

use super::plan::WeightBytes;
use super::text::tokens::{self, TokenizerFiles, Tokenizers};
use backend::CheckedTensors;
use config::Configs;
use inventory::Layout;
pub(crate) use loading::{LoadOptions, reading};
pub use report::{ComponentReport, Inspection, KeptAs, Problem};
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
    pub(crate) tokenizers: Tokenizers,
    transformer: CheckedTensors,
    vae: CheckedTensors,
    clip: CheckedTensors,
    t5: CheckedTensors,
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

    /// What the weights take in `dtype`; the autoencoder's at most, of which the half that encodes is f32.
    pub(crate) fn weight_bytes(&self, dtype: DType) -> WeightBytes {
        let bytes = |tensors: &CheckedTensors, dtype: DType| tensors.elements() * dtype.size_in_bytes();
        WeightBytes {
            transformer: bytes(&self.transformer, dtype),
            vae: bytes(&self.vae, DType::F32),
            clip: bytes(&self.clip, dtype),
            t5: bytes(&self.t5, dtype),
        }
    }
}

fn examine(files: &ModelFiles) -> (Option<Checkpoint>, Inspection) {
    let source = Source::new(files);
    let mut inspection = Inspection::of(source);
    if !source.is_there() {
        inspection.problems.push(Problem::unreadable(inspection.place.clone(), "not a folder that can be read"));
        return (None, inspection);
    }
    let configs = Configs::read(source, &mut inspection.problems);
    let tokenizers = tokenizers(source, configs.as_ref(), &mut inspection.problems);
    let configs_ref = configs.as_ref();
    let (layout, stem) = transformer_location(source);
    let transformer = Component {
        name: "transformer",
        stem: &stem,
        expected: configs_ref.map(|configs| inventory::transformer(&configs.transformer, layout)),
        is_ignored: inventory::none_ignored,
    };
    let transformer = transformer.examine(source, &mut inspection);
    let (layout, stem) = vae_location(source);
    let vae = Component {
        name: "vae",
        stem: &stem,
        expected: configs_ref.map(|configs| inventory::vae(&configs.vae, layout)),
        is_ignored: inventory::none_ignored,
    };
    let vae = vae.examine(source, &mut inspection);
    let clip = Component {
        name: "text_encoder",
        stem: CLIP_STEM,
        expected: configs_ref.map(|configs| inventory::clip(&configs.clip)),
        is_ignored: inventory::clip_ignored,
    };
    let clip = clip.examine(source, &mut inspection);
    let t5 = Component {
        name: "text_encoder_2",
        stem: T5_STEM,
        expected: configs_ref.map(|configs| inventory::t5(&configs.t5)),
        is_ignored: inventory::t5_ignored,
    };
    let t5 = t5.examine(source, &mut inspection);
    let checkpoint = match (configs, tokenizers, transformer, vae, clip, t5) {
        (Some(configs), Some(tokenizers), Some(transformer), Some(vae), Some(clip), Some(t5))
            if inspection.is_sound() =>
        {
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

/// One component: where its weights are, and what is expected there.
struct Component<'a> {
    name: &'static str,
    stem: &'a str,
    /// `None` where the configuration could not be read: then what is there is only counted.
    expected: Option<Vec<inventory::Expected>>,
    is_ignored: fn(&str) -> bool,
}

impl Component<'_> {
    /// Opens the weight files and compares them with what is expected; what was found goes to `inspection`.
    fn examine(self, source: Source, inspection: &mut Inspection) -> Option<CheckedTensors> {
        let mut problems = Vec::new();
        let files = WeightFiles::open(source, self.stem, &mut problems);
        let mut report = ComponentReport::of(self.name, files.as_ref());
        let checked = match (files, self.expected) {
            (Some(files), Some(expected)) => CheckedTensors::check(files, expected, self.is_ignored, &mut problems),
            _ => None,
        };
        report.problems = problems;
        inspection.components.push(report);
        checked
    }
}

/// Builds the tokenizers, and makes sure that the text encoders know every id they can give.
fn tokenizers(source: Source, configs: Option<&Configs>, problems: &mut Vec<Problem>) -> Option<Tokenizers> {
    let clip_vocabulary = source.required_text(tokens::CLIP_VOCABULARY, problems);
    let clip_merges = source.required_text(tokens::CLIP_MERGES, problems);
    let t5 = source.required_text(tokens::T5, problems);
    let files = TokenizerFiles { clip_vocabulary: clip_vocabulary?, clip_merges: clip_merges?, t5: t5? };
    let configs = configs?;
    let tokenizers = match Tokenizers::new(&files, configs.clip.max_position_embeddings) {
        Ok(tokenizers) => tokenizers,
        Err(error) => {
            problems.push(Problem::unreadable(error.file, error.reason));
            return None;
        }
    };
    let [clip_id, t5_id] = tokenizers.largest_ids();
    let limits =
        [(tokens::CLIP_VOCABULARY, clip_id, configs.clip.vocab_size), (tokens::T5, t5_id, configs.t5.vocab_size)];
    for (file, id, vocabulary) in limits {
        if id as usize >= vocabulary {
            let reason =
                format!("has the token id {id}, but the text encoder's config.json says vocab_size {vocabulary}");
            problems.push(Problem::unreadable(file, reason));
        }
    }
    Some(tokenizers)
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
