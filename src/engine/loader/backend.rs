//! Checked tensors, and how each is put together from its parts; and candle's [`VarBuilder`], which asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use safetensors::Dtype;

use super::inventory::Expected;
use super::recipe::{Recipe, Segment};
use super::report::Problem;
use super::stream::TensorStream;
use super::weights::WeightFiles;
use crate::domain::engine::LoadObserver;

/// The tensors of one component, all present and of the right shape.
#[derive(Clone)]
pub(super) struct CheckedTensors(Arc<Inner>);

struct Inner {
    files: WeightFiles,
    expected: BTreeMap<String, Expected>,
    /// Their names, in the order of the inventory.
    order: Vec<String>,
}

impl CheckedTensors {
    /// Compares what is there with what is expected. `None` when anything is wrong; what it is goes to `problems`.
    pub(super) fn check(
        files: WeightFiles,
        expected: Vec<Expected>,
        is_ignored: fn(&str) -> bool,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let before = problems.len();
        let mut known = BTreeSet::new();
        for part in expected.iter().flat_map(|tensor| &tensor.parts) {
            known.insert(part.name.as_str());
            check_part(&files, &part.name, &part.shape, problems);
        }
        for (name, entry) in &files.entries {
            if !known.contains(name.as_str()) && !is_ignored(name) {
                let file = files.path_of(entry).to_owned();
                problems.push(Problem::SurplusTensor { file, tensor: name.clone(), found: entry.shape.clone() });
            }
        }
        let order = expected.iter().map(|tensor| tensor.name.clone()).collect();
        let expected = expected.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        (problems.len() == before).then(|| Self(Arc::new(Inner { files, expected, order })))
    }

    /// Numbers in all its tensors.
    pub(super) fn elements(&self) -> usize {
        self.0.expected.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// Their names, in the order in which the model asks for them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.order.iter().map(String::as_str)
    }

    /// How a tensor comes to be as numbers of type `dtype`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(super) fn recipe(&self, name: &str, dtype: DType) -> Result<Recipe> {
        self.0.recipe(name, dtype)
    }
}

fn check_part(files: &WeightFiles, name: &str, shape: &[usize], problems: &mut Vec<Problem>) {
    let Some(entry) = files.entries.get(name) else {
        if files.unread.contains(name) {
            // Its shard is already named as a problem.
            return;
        }
        let (file, tensor) = (files.label.clone(), name.to_owned());
        problems.push(Problem::MissingTensor { file, tensor, expected: shape.to_vec() });
        return;
    };
    let (file, tensor) = (files.path_of(entry).to_owned(), name.to_owned());
    if entry.shape != shape {
        problems.push(Problem::Shape { file, tensor, expected: shape.to_vec(), found: entry.shape.clone() });
    } else if dtype_of(entry.dtype).is_none() {
        problems.push(Problem::Dtype { file, tensor, found: format!("{:?}", entry.dtype) });
    }
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

impl Inner {
    fn recipe(&self, name: &str, dtype: DType) -> Result<Recipe> {
        let expected = self.expected.get(name).ok_or_else(|| missing(name))?;
        let mut segments = Vec::with_capacity(expected.parts.len());
        for part in &expected.parts {
            let entry = self.files.entries.get(&part.name).ok_or_else(|| missing(&part.name))?;
            let file = Arc::clone(&self.files.files[entry.file]);
            let found = dtype_of(entry.dtype).ok_or_else(|| missing(&part.name))?;
            let count = entry.range.len() / found.size_in_bytes();
            segments.push(Segment { file, start: entry.range.start, count, dtype: found });
        }
        if expected.swap_halves {
            segments = segments.into_iter().flat_map(swapped_halves).collect();
        }
        Ok(Recipe { segments, dtype, shape: expected.shape.clone() })
    }
}

fn swapped_halves(whole: Segment) -> [Segment; 2] {
    let half = whole.count / 2;
    let start = whole.start + half * whole.dtype.size_in_bytes();
    [Segment { start, count: whole.count - half, ..whole.clone() }, Segment { count: half, ..whole }]
}

fn missing(name: &str) -> Error {
    Error::CannotFindTensor { path: name.to_owned() }.bt()
}

/// Tensors that come when candle's [`VarBuilder`] asks for them: out of a stream those that it has in the type that is
/// asked for, and by the machine's memory all others.
pub(super) struct Weights {
    pub(super) tensors: CheckedTensors,
    pub(super) streamed: Option<Streamed>,
    /// Hears of what was read.
    pub(super) observer: Arc<dyn LoadObserver>,
    /// Except of tensors whose names begin so: those that come anew for each prompt.
    pub(super) untold: Option<&'static str>,
}

/// A component's tensors in a stream: by their names, their numbers and types there.
pub(super) struct Streamed {
    pub(super) stream: Arc<dyn TensorStream>,
    pub(super) numbers: BTreeMap<String, (usize, DType)>,
}

impl Streamed {
    /// `None` where the stream has no such tensor.
    fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Option<Result<Tensor>> {
        let &(number, kept) = self.numbers.get(name)?;
        (kept == dtype && self.stream.leads_to(device)).then(|| self.stream.tensor(number))
    }
}

impl Weights {
    pub(super) fn builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            bail!("`{name}` has shape {:?}, the model asks for {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let recipe = self.tensors.recipe(name, dtype)?;
        let tensor = match &self.streamed {
            Some(streamed) => streamed.tensor(name, dtype, device).transpose()?,
            None => None,
        };
        let tensor = match tensor {
            Some(tensor) => tensor,
            None => recipe.read_to_host()?.to_device(device)?,
        };
        if !self.untold.is_some_and(|untold| name.starts_with(untold)) {
            self.observer.loaded(recipe.file_bytes() as u64);
        }
        Ok(tensor)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.0.expected.contains_key(name)
    }
}
