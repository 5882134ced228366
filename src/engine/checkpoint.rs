//! From a checkpoint, in any published form, to named tensors of known shapes.
//!
//! Everything is checked before anything is loaded: [`Checkpoint::open`] reads the configuration files and the headers of the
//! weight files, compares every tensor's name, shape and dtype with what the configuration requires, and reports all problems
//! at once.
//!
//! Must not know a device's memory, or what layers compute.

mod base_weights;
mod builder;
mod companions;
mod component;
mod config_files;
mod contents;
mod controlnets;
mod entry;
mod files;
mod formats;
mod inventory;
mod layout;
mod loading;
mod metadata;
mod names;
mod numbers;
mod other_kinds;
mod places;
mod problem;
mod recipe;
mod repeated;
mod report;
mod schedules;
mod shapes;
mod source;
mod stored;
mod stream;
mod tensor_file;
mod tensors;
mod values;
mod vocabularies;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::DType;

use super::models::flux1::config::Configs;
use super::models::flux1::text::tokens::Tokenizers;
use crate::domain::model::ModelFiles;

pub(crate) use base_weights::BaseWeights;
pub(crate) use builder::{E4m3Matrix, Matrix, Tensors};
pub use component::conditioning_of;
pub(crate) use component::{ComponentWeights, WeightTensor};
use config_files::Parts;
pub use contents::{FileContents, file_contents};
pub use controlnets::controlnet_card;
pub(crate) use controlnets::{ControlNetFiles, ControlNetWeights};
use inventory::tensors_of;
use layout::Layout;
pub(crate) use loading::{EXPANDED_BYTES_MAX, LoadOptions};
pub use metadata::FileMetadata;
pub(crate) use metadata::shown;
pub(crate) use names::adapted::{AdaptedModule, AdaptedModules, IMAGE_INPUT, NamedPlace, Naming};
pub(crate) use names::spellings::Component;
use names::{Module, autoencoder, text_encoders, transformer};
pub(crate) use other_kinds::other_kind;
use places::{Found, Places};
pub use problem::Problem;
pub(crate) use repeated::{BlockBytes, StreamedBlocks};
pub use report::{ComponentReport, Inspection, KeptAs};
pub(crate) use stored::StoredMatrix;
pub(super) use stream::{BUFFER_BYTES, readers};
pub(crate) use tensor_file::TensorFile;
use tensors::CheckedTensors;

/// A checkpoint that cannot be used, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint in {place} cannot be used:{}", problem::bullet_list(.problems))]
pub struct CheckpointError {
    /// The folder, the file, or "the program itself".
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
    /// Beside it.
    pub(crate) controlnets: Vec<ControlNetFiles>,
}

/// Bytes of each component's weights on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    pub(crate) transformer: usize,
    pub(crate) vae: usize,
    pub(crate) clip: usize,
    pub(crate) t5: usize,
    /// Of matrices that are kept as they are stored, what is expanded at a time.
    pub(crate) expanding: usize,
    /// Of models that are loaded beside the checkpoint: its ControlNets.
    pub(crate) attached: usize,
    /// No bytes: the most residuals that a ControlNet gives in a step, each as wide as the transformer's stream for every token.
    pub(crate) residuals: usize,
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
            expanding: 0,
            attached: self.controlnets.iter().map(|net| bytes(&net.tensors, dtype)).sum(),
            residuals: self.controlnets.iter().map(|net| net.config.blocks().iter().sum::<usize>()).max().unwrap_or(0),
        }
    }
}

/// The modules of a checkpoint that adapters can change.
///
/// # Errors
/// As [`Checkpoint::open`].
pub(crate) fn adapted_modules(files: &ModelFiles) -> Result<AdaptedModules, CheckpointError> {
    let Configs { transformer, clip, t5, .. } = Checkpoint::open(files)?.configs;
    Ok(AdaptedModules::of(&transformer, &clip, &t5))
}

fn examine(files: &ModelFiles) -> (Option<Checkpoint>, Inspection) {
    let places = Places::new(files);
    let mut inspection = Inspection::of(&places);
    if let Some(problem) = places.absence() {
        inspection.problems.push(problem);
        return (None, inspection);
    }
    inspection.problems.extend(places.useless());
    let [mut transformer, mut vae, mut clip, mut t5] = Component::ALL.map(|component| Opened::new(&places, component));
    let parts = Parts {
        transformer: transformer.found.as_ref(),
        vae: vae.found.as_ref(),
        clip: clip.found.as_ref(),
        t5: t5.found.as_ref(),
    };
    let configs = config_files::read(&places, &parts, &mut inspection.problems);
    let tokenizers = vocabularies::read(&places, configs.as_ref(), t5.found.as_ref(), &mut inspection.problems);
    let configs_ref = configs.as_ref();
    let mut check = |opened: &mut Opened| {
        let modules = configs_ref.map(|configs| opened.component.modules(configs));
        opened.check(modules, &mut inspection)
    };
    let checked = (check(&mut transformer), check(&mut vae), check(&mut clip), check(&mut t5));
    let controlnets = open_controlnets(files, configs_ref, &mut inspection);
    let checkpoint = match (configs, tokenizers, checked, controlnets) {
        (Some(configs), Some(tokenizers), (Some(transformer), Some(vae), Some(clip), Some(t5)), Some(controlnets))
            if inspection.is_sound() =>
        {
            Some(Checkpoint { configs, tokenizers: Arc::new(tokenizers), transformer, vae, clip, t5, controlnets })
        }
        _ => None,
    };
    (checkpoint, inspection)
}

/// Opens the ControlNets beside a checkpoint. `None` when one cannot be used.
fn open_controlnets(
    files: &ModelFiles,
    configs: Option<&Configs>,
    inspection: &mut Inspection,
) -> Option<Vec<ControlNetFiles>> {
    let attached = files.attachments().map(|attachments| attachments.controlnets.as_slice()).unwrap_or_default();
    let model = configs.map(|configs| &configs.transformer);
    let open = |(name, path): &(Arc<str>, PathBuf)| ControlNetFiles::open((name, path.as_path()), model, inspection);
    // Every problem is reported, not only the first.
    let opened: Vec<Option<ControlNetFiles>> = attached.iter().map(open).collect();
    opened.into_iter().collect()
}

impl Component {
    /// The modules that a component has by its configuration.
    fn modules(self, configs: &Configs) -> Vec<Module> {
        match self {
            Self::Transformer => transformer::modules(&configs.transformer),
            Self::Vae => autoencoder::modules(&configs.vae),
            Self::Clip => text_encoders::clip(&configs.clip),
            Self::T5 => text_encoders::t5(&configs.t5),
        }
    }

    /// Tells tensors that files have and FLUX does not use.
    fn ignored(self) -> fn(&str) -> bool {
        match self {
            Self::Transformer | Self::Vae => |_| false,
            Self::Clip => text_encoders::is_ignored_of_clip,
            Self::T5 => text_encoders::is_ignored_of_t5,
        }
    }
}

/// A component whose files were opened.
struct Opened<'a> {
    component: Component,
    found: Option<Found<'a>>,
    problems: Vec<Problem>,
}

impl<'a> Opened<'a> {
    fn new(places: &Places<'a>, component: Component) -> Self {
        let mut problems = Vec::new();
        let found = places.open(component, &mut problems);
        Self::of(component, found, problems)
    }

    /// The only component that is opened.
    fn alone(places: &Places<'a>, component: Component) -> Self {
        let mut problems = Vec::new();
        let found = places.open_alone(component, &mut problems);
        Self::of(component, found, problems)
    }

    fn of(component: Component, mut found: Option<Found<'a>>, mut problems: Vec<Problem>) -> Self {
        if let Some(found) = &mut found {
            found.check_method(&mut problems);
        }
        Self { component, found, problems }
    }

    /// Compares the weight files with what is expected, and reports to `inspection`. Without a configuration, `modules` is
    /// `None`, and tensors are only counted.
    fn check(&mut self, modules: Option<Vec<Module>>, inspection: &mut Inspection) -> Option<CheckedTensors> {
        let (files, mut problems) = (self.found.take().map(|found| found.files), std::mem::take(&mut self.problems));
        let mut report = ComponentReport::of(self.component.folder(), files.as_ref());
        if let Some(files) = &files {
            inspection.add_metadata(files);
        }
        let checked = match (files, modules) {
            (Some(files), Some(modules)) if !files.is_refused => {
                let layout = Layout::of(&files, self.component);
                CheckedTensors::check(files, tensors_of(&modules, layout), self.component.ignored(), &mut problems)
            }
            _ => None,
        };
        inspection.drop_known(&mut problems);
        report.problems = problems;
        inspection.components.push(report);
        checked
    }
}

/// The names and shapes of the tensors of FLUX.1-dev's transformer.
#[cfg(test)]
pub(super) fn flux_dev_tensors() -> Vec<(String, Vec<usize>)> {
    let modules = transformer::modules(&Configs::flux_dev().transformer);
    tensors_of(&modules, Layout::SingleFile).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect()
}

/// The names by which the model asks for the transformer's and the autoencoder's tensors.
#[cfg(test)]
pub(super) fn tensor_names(configs: &Configs) -> [Vec<String>; 2] {
    [transformer::modules(&configs.transformer), autoencoder::modules(&configs.vae)]
        .map(|modules| tensors_of(&modules, Layout::SingleFile).into_iter().map(|tensor| tensor.name).collect())
}

#[cfg(test)]
mod tests;
