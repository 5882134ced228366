//! Checked tensors, and how each is assembled from its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Error, Result};

use super::files::WeightFiles;
use super::formats::FileDtype;
use super::inventory::Expected;
use super::problem::Problem;
use super::recipe::{Recipe, Segment};

/// The tensors of one component, all present and of the right shape. Cheap to clone.
#[derive(Clone)]
pub(super) struct CheckedTensors(Arc<Inner>);

struct Inner {
    files: WeightFiles,
    expected: BTreeMap<String, Expected>,
    /// Their names, in the order of the inventory.
    order: Vec<String>,
}

impl CheckedTensors {
    /// Compares the files with what is expected. `None` when anything is wrong; problems go to `problems`.
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
                let (tensor, found) = (entry.name.clone(), entry.info.shape.clone());
                problems.push(Problem::SurplusTensor { file, tensor, found });
            }
        }
        let order = expected.iter().map(|tensor| tensor.name.clone()).collect();
        let expected = expected.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        (problems.len() == before).then(|| Self(Arc::new(Inner { files, expected, order })))
    }

    /// Numbers in all tensors.
    pub(super) fn elements(&self) -> usize {
        self.0.expected.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// Whether there is a tensor of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.expected.contains_key(name)
    }

    /// Their names, in the order in which the model asks for them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.order.iter().map(String::as_str)
    }

    /// Bytes of all tensors where matrices are kept as they are stored, except those that are kept in `dtype`. `None` where
    /// that saves nothing.
    pub(super) fn stored_bytes(&self, dtype: DType, is_full: fn(&str) -> bool) -> Option<usize> {
        let (mut bytes, mut is_smaller) = (0, false);
        for (name, tensor) in &self.0.expected {
            let full = tensor.shape.iter().product::<usize>() * dtype.size_in_bytes();
            let stored = self.recipe(name, dtype).map_or(full, |recipe| recipe.stored_bytes());
            let is_stored = tensor.shape.len() == 2 && !is_full(name);
            is_smaller |= is_stored && stored < full;
            bytes += if is_stored { stored } else { full };
        }
        is_smaller.then_some(bytes)
    }

    /// How a tensor is read as numbers of type `dtype`.
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
            // Its shard is already a problem.
            return;
        }
        let (file, tensor) = (files.label.clone(), name.to_owned());
        problems.push(Problem::MissingTensor { file, tensor, expected: shape.to_vec() });
        return;
    };
    let (file, tensor) = (files.path_of(entry).to_owned(), entry.name.clone());
    match (&entry.numbers, &entry.info.dtype) {
        (None, FileDtype::Other(found)) => problems.push(Problem::Dtype { file, tensor, found: found.clone() }),
        _ if entry.info.shape != shape => {
            problems.push(Problem::Shape { file, tensor, expected: shape.to_vec(), found: entry.info.shape.clone() });
        }
        _ => {}
    }
}

impl Inner {
    fn recipe(&self, name: &str, dtype: DType) -> Result<Recipe> {
        let expected = self.expected.get(name).ok_or_else(|| missing(name))?;
        let mut segments = Vec::with_capacity(expected.parts.len());
        for part in &expected.parts {
            let entry = self.files.entries.get(&part.name).ok_or_else(|| missing(&part.name))?;
            let file = Arc::clone(&self.files.files[entry.file]);
            let numbers = entry.numbers.clone().ok_or_else(|| missing(&part.name))?;
            let (start, count) = (entry.info.range.start, entry.info.elements());
            segments.push(Segment { file, start, skipped: 0, count, numbers });
        }
        if expected.swap_halves {
            segments = segments.into_iter().flat_map(swapped_halves).collect();
        }
        Ok(Recipe { segments, dtype, shape: expected.shape.clone() })
    }
}

fn swapped_halves(whole: Segment) -> [Segment; 2] {
    let half = whole.count / 2;
    [Segment { skipped: half, count: whole.count - half, ..whole.clone() }, Segment { count: half, ..whole }]
}

fn missing(name: &str) -> Error {
    Error::CannotFindTensor { path: name.to_owned() }.bt()
}
