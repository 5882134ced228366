//! The weight files of one component: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::formats::TensorInfo;
use super::formats::safetensors::{index_path, read_header, read_index, single_path};
use super::problem::Problem;
use super::source::{Blob, Source};

/// A tensor, and the file that has it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Index into [`WeightFiles::files`].
    pub(super) file: usize,
    pub(super) info: TensorInfo,
}

/// All tensors of one component, by name.
pub(super) struct WeightFiles {
    pub(super) files: Vec<Arc<Blob>>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The file, or the index of the shards: what a message about a missing tensor names.
    pub(super) label: String,
    /// Tensors that the index places in shards which are missing or cannot be read.
    pub(super) unread: BTreeSet<String>,
}

impl WeightFiles {
    /// Whether there is a file or an index of this stem.
    pub(super) fn exist(source: Source, stem: &str) -> bool {
        source.contains(&single_path(stem)) || source.contains(&index_path(stem))
    }

    /// Opens `STEM.safetensors`, or the shards that `STEM.safetensors.index.json` names, and reads their headers.
    /// `None` when no file could be opened; problems go to `problems`.
    pub(super) fn open(source: Source, stem: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let (single, index) = (single_path(stem), index_path(stem));
        if source.contains(&single) {
            let mut weights = Self::empty(single.clone());
            weights.add(source, &single, problems);
            return (!weights.files.is_empty()).then_some(weights);
        }
        let before = problems.len();
        let Some(text) = source.text(&index, problems) else {
            if problems.len() == before {
                problems.push(Problem::MissingFile { path: single, hint: format!(", and so is {index}") });
            }
            return None;
        };
        let map = match read_index(&text) {
            Ok(map) => map,
            Err(error) => {
                problems.push(Problem::unreadable(index, error));
                return None;
            }
        };
        let folder = stem.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let mut shards: Vec<&String> = map.values().collect();
        shards.sort();
        shards.dedup();
        let mut weights = Self::empty(index);
        for shard in shards {
            let before = weights.files.len();
            weights.add(source, &format!("{folder}{shard}"), problems);
            if weights.files.len() == before {
                let held = map.iter().filter(|(_, file)| *file == shard);
                weights.unread.extend(held.map(|(tensor, _)| tensor.clone()));
            }
        }
        (!weights.files.is_empty()).then_some(weights)
    }

    fn empty(label: String) -> Self {
        Self { files: Vec::new(), entries: BTreeMap::new(), label, unread: BTreeSet::new() }
    }

    fn add(&mut self, source: Source, path: &str, problems: &mut Vec<Problem>) {
        let blob = match source.open(path) {
            Ok(Some(blob)) => blob,
            Ok(None) => return problems.push(Problem::missing(path)),
            Err(error) => return problems.push(Problem::unreadable(path, error)),
        };
        let tensors = match read_header(&blob) {
            Ok(tensors) => tensors,
            Err(error) => {
                return problems.push(Problem::unreadable(path, format!("not a complete safetensors file: {error}")));
            }
        };
        for (name, info) in tensors {
            let entry = Entry { file: self.files.len(), info };
            if self.entries.insert(name.clone(), entry).is_some() {
                problems.push(Problem::unreadable(path, format!("tensor `{name}` is in another shard, too")));
            }
        }
        self.files.push(Arc::new(blob));
    }

    /// The path of the file that has an entry.
    pub(super) fn path_of(&self, entry: &Entry) -> &str {
        self.files[entry.file].path()
    }
}
