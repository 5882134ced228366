//! From a checkpoint, in either published layout, to named tensors of known shapes.
//!
//! Everything is checked before anything is loaded: [`Checkpoint::open`] reads the configuration files and the headers of the
//! weight files, compares every tensor's name, shape and dtype with what the configuration requires, and reports all problems
//! at once.
//!
//! Must not know a device's memory, or what layers compute.

mod builder;
mod config_files;
mod files;
mod formats;
mod inventory;
mod layout;
mod loading;
mod names;
mod problem;
mod recipe;
mod report;
mod source;
mod stream;
mod tensors;
mod values;

use std::sync::Arc;

use candle_core::DType;

use super::models::flux1::config::Configs;
use super::models::flux1::text::tokens::{self, TokenizerFiles, Tokenizers};
use crate::domain::model::ModelFiles;

use files::WeightFiles;
use inventory::{Expected, tensors_of};
use layout::Layout;
pub(crate) use loading::LoadOptions;
use names::{autoencoder, text_encoders, transformer};
pub use problem::Problem;
pub use report::{ComponentReport, Inspection, KeptAs};
use source::Source;
pub(super) use stream::{BUFFER_BYTES, readers};
use tensors::CheckedTensors;

/// A checkpoint that cannot be used, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint in {place} cannot be used:{}", problem::bullet_list(.problems))]
pub struct CheckpointError {
    /// The folder, or "the program itself".
    pub place: String,
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

/// A complete checkpoint. Tensors are read when they are asked for.
pub(crate) struct Checkpoint {
    pub(crate) configs: Configs,
    pub(crate) tokenizers: Arc<Tokenizers>,
    transformer: CheckedTensors,
    vae: CheckedTensors,
    clip: CheckedTensors,
    t5: CheckedTensors,
}

/// Bytes of each component's weights on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    pub(crate) transformer: usize,
    pub(crate) vae: usize,
    pub(crate) clip: usize,
    pub(crate) t5: usize,
}

/// Reads and compares everything but the weights' values, and reports it.
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

    /// The size of the weights in `dtype`.
    pub(crate) fn weight_bytes(&self, dtype: DType) -> WeightBytes {
        let bytes = |tensors: &CheckedTensors, dtype: DType| tensors.elements() * dtype.size_in_bytes();
        WeightBytes {
            transformer: bytes(&self.transformer, dtype),
            vae: bytes(&self.vae, dtype),
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
    let configs = config_files::read(source, &mut inspection.problems);
    let tokenizers = tokenizers(source, configs.as_ref(), &mut inspection.problems);
    let configs_ref = configs.as_ref();
    let (layout, stem) = layout::find_transformer(source);
    let transformer = Component {
        name: "transformer",
        stem: &stem,
        expected: configs_ref.map(|configs| tensors_of(&transformer::modules(&configs.transformer), layout)),
        is_ignored: |_| false,
    };
    let transformer = transformer.examine(source, &mut inspection);
    let (layout, stem) = layout::find_vae(source);
    let vae = Component {
        name: "vae",
        stem: &stem,
        expected: configs_ref.map(|configs| tensors_of(&autoencoder::modules(&configs.vae), layout)),
        is_ignored: |_| false,
    };
    let vae = vae.examine(source, &mut inspection);
    let clip = Component {
        name: "text_encoder",
        stem: layout::CLIP_STEM,
        expected: configs_ref.map(|configs| tensors_of(&text_encoders::clip(&configs.clip), Layout::SingleFile)),
        is_ignored: text_encoders::is_ignored_of_clip,
    };
    let clip = clip.examine(source, &mut inspection);
    let t5 = Component {
        name: "text_encoder_2",
        stem: layout::T5_STEM,
        expected: configs_ref.map(|configs| tensors_of(&text_encoders::t5(&configs.t5), Layout::SingleFile)),
        is_ignored: text_encoders::is_ignored_of_t5,
    };
    let t5 = t5.examine(source, &mut inspection);
    let checkpoint = match (configs, tokenizers, transformer, vae, clip, t5) {
        (Some(configs), Some(tokenizers), Some(transformer), Some(vae), Some(clip), Some(t5))
            if inspection.is_sound() =>
        {
            Some(Checkpoint { configs, tokenizers: Arc::new(tokenizers), transformer, vae, clip, t5 })
        }
        _ => None,
    };
    (checkpoint, inspection)
}

/// One component: where its weights are, and what is expected there.
struct Component<'a> {
    name: &'static str,
    stem: &'a str,
    /// `None` where the configuration could not be read: then tensors are only counted.
    expected: Option<Vec<Expected>>,
    is_ignored: fn(&str) -> bool,
}

impl Component<'_> {
    /// Opens the weight files and compares them with what is expected. Reports to `inspection`.
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

/// Builds the tokenizers, and checks that the text encoders know every id they can give.
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

/// The names by which the model asks for the transformer's and the autoencoder's tensors.
#[cfg(test)]
pub(super) fn tensor_names(configs: &Configs) -> [Vec<String>; 2] {
    [transformer::modules(&configs.transformer), autoencoder::modules(&configs.vae)]
        .map(|modules| tensors_of(&modules, Layout::SingleFile).into_iter().map(|tensor| tensor.name).collect())
}
