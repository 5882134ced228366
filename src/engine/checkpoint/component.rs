//! One component of a checkpoint by itself, for what reads its weights and loads no model.

use candle_core::{DType, Result};

use super::names::spellings::{Component, in_llama_cpp};
use super::names::{text_encoders, transformer};
use super::places::Places;
use super::problem::Problem;
use super::recipe::Recipe;
use super::report::Inspection;
use super::{CheckpointError, Opened, config_files};
use crate::domain::conditioning::Conditioning;
use crate::domain::conversion::ConvertedComponent;
use crate::domain::model::ModelFiles;
use crate::engine::models::flux1::config::{CHANNELS, TRANSFORMER};

/// All tensors of one component, of the shapes that its configuration requires.
pub(crate) struct ComponentWeights {
    /// In the order in which the model loads them.
    pub(crate) tensors: Vec<WeightTensor>,
    /// The files that have them, as messages name them.
    pub(crate) files: Vec<String>,
}

/// A tensor that is read when it is asked for.
pub(crate) struct WeightTensor {
    name: String,
    recipe: Recipe,
}

impl ComponentWeights {
    /// Opens a component in whichever published form it is, and reads the headers of its files.
    ///
    /// # Errors
    /// When anything is missing, surplus, misshapen or unreadable.
    pub(crate) fn open(
        files: &ModelFiles,
        component: ConvertedComponent,
    ) -> std::result::Result<Self, CheckpointError> {
        let places = Places::new(files);
        let mut inspection = Inspection::of(&places);
        let place = inspection.place.clone();
        if let Some(problem) = places.absence() {
            return Err(CheckpointError { place, problems: vec![problem] });
        }
        let of = |component| Opened::alone(&places, component);
        let mut problems = Vec::new();
        let (mut opened, modules) = match component {
            ConvertedComponent::Transformer => {
                let opened = of(Component::Transformer);
                let config = config_files::transformer(&places, opened.found.as_ref(), &mut problems);
                (opened, config.map(|config| transformer::modules(&config)))
            }
            ConvertedComponent::T5 => {
                let opened = of(Component::T5);
                let config = config_files::t5(&places, opened.found.as_ref(), &mut problems);
                (opened, config.map(|config| text_encoders::t5(&config)))
            }
        };
        inspection.problems = problems;
        let checked = opened.check(modules, &mut inspection);
        let files = inspection.components.iter().flat_map(|report| report.files.clone()).collect();
        let Some(checked) = checked.filter(|_| inspection.is_sound()) else {
            return Err(CheckpointError { place, problems: inspection.into_problems() });
        };
        let tensor = |name: &str| {
            let recipe = checked.recipe(name, DType::F32).expect("the tensors of a component have recipes");
            WeightTensor { name: name.to_owned(), recipe }
        };
        Ok(Self { tensors: checked.names().map(tensor).collect(), files })
    }
}

/// What the transformer of a checkpoint takes beside the prompt, by its configuration or, without one, by the shapes in its file's
/// header. FLUX.1-Kontext cannot be told from FLUX.1-dev: both are [`Conditioning::Prompt`].
///
/// # Errors
/// When there is no transformer, or none of the known ones has so many channels.
pub fn conditioning_of(files: &ModelFiles) -> std::result::Result<Conditioning, CheckpointError> {
    let places = Places::new(files);
    let mut problems: Vec<_> = places.absence().into_iter().collect();
    if problems.is_empty() {
        let Opened { found, problems: of_files, .. } = Opened::alone(&places, Component::Transformer);
        problems.extend(of_files);
        let config = config_files::transformer(&places, found.as_ref(), &mut problems);
        if let Some(config) = config.filter(|_| problems.is_empty()) {
            if let Some(conditioning) = config.conditioning() {
                return Ok(conditioning);
            }
            problems.push(Problem::unreadable(TRANSFORMER, CHANNELS));
        }
    }
    Err(CheckpointError { place: places.name, problems })
}

impl WeightTensor {
    /// The name in safetensors files: that of the model's authors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name in GGUF files, where T5's tensors have those of llama.cpp.
    pub(crate) fn name_in_gguf(&self) -> String {
        in_llama_cpp(&self.name).unwrap_or_else(|| self.name.clone())
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.recipe.shape
    }

    /// The type of its numbers in the files, where all of them are stored as they are.
    pub(crate) fn plain(&self) -> Option<DType> {
        let mut types = self.recipe.segments.iter().map(|segment| segment.numbers.plain());
        let first = types.next()??;
        types.all(|other| other == Some(first)).then_some(first)
    }

    /// Bytes that are read for it.
    pub(crate) fn file_bytes(&self) -> usize {
        self.recipe.file_bytes()
    }

    /// Reads its numbers.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn numbers(&self) -> Result<Vec<f32>> {
        self.recipe.numbers()
    }

    /// Reads the bytes of its numbers as BF16, F16 or F32.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn bytes_as(&self, dtype: DType) -> Result<Vec<u8>> {
        Recipe { dtype, ..self.recipe.clone() }.numbers()
    }
}
