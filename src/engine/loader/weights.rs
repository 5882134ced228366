//! The safetensors files of one component: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::report::Problem;
use super::source::{Blob, Source};

/// Longest header that is read; as in the library that defines the format.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// One tensor's place.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Index into [`WeightFiles::files`].
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: std::ops::Range<usize>,
}

/// All tensors of one component, by name.
pub(super) struct WeightFiles {
    pub(super) files: Vec<Arc<Blob>>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The file, or the index of the shards: what to name when a tensor is missing.
    pub(super) label: String,
    /// Tensors that the index places in shards which are missing or cannot be read.
    pub(super) unread: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn single_path(stem: &str) -> String {
    format!("{stem}.safetensors")
}

fn index_path(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}

impl WeightFiles {
    /// Whether there is a file or an index of this stem.
    pub(super) fn exist(source: Source, stem: &str) -> bool {
        source.contains(&single_path(stem)) || source.contains(&index_path(stem))
    }

    /// Opens `STEM.safetensors`, or the shards that `STEM.safetensors.index.json` names, and reads their headers.
    /// `None` when not one file could be opened; whatever is wrong goes to `problems`.
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
        let map = match serde_json::from_str::<Index>(&text) {
            Ok(index) => index.weight_map,
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
        match source.open(path) {
            Err(error) => problems.push(Problem::unreadable(path, error)),
            Ok(None) => problems.push(Problem::missing(path)),
            Ok(Some(blob)) => match self.read_header(&blob, path, problems) {
                Err(error) => {
                    problems.push(Problem::unreadable(path, format!("not a whole safetensors file: {error}")));
                }
                Ok(()) => self.files.push(Arc::new(blob)),
            },
        }
    }

    fn read_header(&mut self, blob: &Blob, path: &str, problems: &mut Vec<Problem>) -> Result<(), String> {
        let (start, metadata) = header_of(blob)?;
        let expected = metadata.data_len().checked_add(start);
        if expected != Some(blob.bytes()) {
            let expected = expected.map_or("more than there can be".to_owned(), |bytes| bytes.to_string());
            return Err(format!("it has {} bytes, its header speaks of {expected}", blob.bytes()));
        }
        for (name, info) in metadata.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), range };
            if self.entries.insert(name.clone(), entry).is_some() {
                problems.push(Problem::unreadable(path, format!("tensor `{name}` stands in another shard, too")));
            }
        }
        Ok(())
    }

    /// The path of the file an entry stands in.
    pub(super) fn path_of(&self, entry: &Entry) -> &str {
        self.files[entry.file].path()
    }
}

/// A file's header, and where the tensors begin behind it.
fn header_of(blob: &Blob) -> Result<(usize, Metadata), String> {
    let mut length = [0; size_of::<u64>()];
    if blob.bytes() < length.len() {
        return Err(format!("it has {} bytes", blob.bytes()));
    }
    blob.read(0, &mut length)?;
    let bytes = u64::from_le_bytes(length);
    let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes <= HEADER_BYTES_MAX && bytes <= blob.bytes());
    let bytes = bytes.ok_or_else(|| "its header would be longer than the file, or than any header".to_owned())?;
    let mut header = vec![0; bytes];
    blob.read(length.len(), &mut header)?;
    // Beside the fields it also compares the tensors' places: one behind the other, without gaps, as long as their shapes.
    let metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    Ok((length.len() + bytes, metadata))
}
