//! The weight files of one component: one file, or shards with an index; and the part of a file that has several components.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::companions::{Joining, unsupported_layer};
use super::entry::Entry;
use super::formats::safetensors::{index_path, read_index, single_path};
use super::formats::{FileDtype, Header, read_header};
use super::metadata::FileMetadata;
use super::names::spellings::{Component, bare, canonical, prefixed};
use super::numbers::Numbers;
use super::problem::Problem;
use super::source::{Blob, Source};

/// A file whose header was read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) blob: Arc<Blob>,
    pub(super) header: Header,
}

impl OpenFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// With the problem.
    pub(super) fn open(source: Source, path: &str) -> Result<Self, Problem> {
        let blob = match source.open(path) {
            Ok(Some(blob)) => blob,
            Ok(None) => return Err(Problem::missing(source.shown(path))),
            Err(error) => return Err(Problem::unreadable(source.shown(path), error)),
        };
        match read_header(&blob) {
            Ok(header) => Ok(Self { blob: Arc::new(blob), header }),
            Err(reason) => Err(Problem::unreadable(source.shown(path), reason)),
        }
    }

    /// The components that the file has. Files of adapters have tensors of a component, but not this one.
    pub(super) fn components(&self) -> BTreeSet<Component> {
        let bare = self.bare();
        let component = |name: &String| {
            let (component, rest) = prefixed(name).or_else(|| Some((bare?, name.as_str())))?;
            let name = canonical(component, rest);
            component.landmarks().iter().any(|landmark| name.starts_with(landmark)).then_some(component)
        };
        self.header.tensors.keys().filter_map(component).collect()
    }

    /// The component whose tensors have no prefix.
    fn bare(&self) -> Option<Component> {
        // All of T5 has a decoder, whose tensors begin as the autoencoder's.
        const BY_PRECEDENCE: [Component; 4] = [Component::Transformer, Component::T5, Component::Clip, Component::Vae];
        let found: BTreeSet<Component> = self.header.tensors.keys().filter_map(|name| bare(name)).collect();
        BY_PRECEDENCE.into_iter().find(|component| found.contains(component))
    }
}

/// All tensors of one component, by the names that the tables have.
pub(super) struct WeightFiles {
    pub(super) files: Vec<Arc<Blob>>,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The file, or the index of the shards: what a message about a missing tensor names.
    pub(super) label: String,
    /// Tensors that the index places in shards which are missing or cannot be read.
    pub(super) unread: BTreeSet<String>,
    /// Tensors in the files, with those that say how others are stored.
    pub(super) tensors: usize,
    /// Their bytes in the files.
    pub(super) bytes: usize,
    /// Whether the way in which weights are stored is not supported, which is a problem already.
    pub(super) is_refused: bool,
    /// What the files say of themselves.
    pub(super) metadata: Vec<FileMetadata>,
}

impl WeightFiles {
    /// Whether there is a file or an index of this stem.
    pub(super) fn exist(source: Source, stem: &str) -> bool {
        source.contains(&single_path(stem)) || source.contains(&index_path(stem))
    }

    /// Opens `STEM.safetensors`, or the shards that `STEM.safetensors.index.json` names, and reads their headers.
    /// `None` when no file could be opened; problems go to `problems`.
    pub(super) fn open(source: Source, stem: &str, component: Component, problems: &mut Vec<Problem>) -> Option<Self> {
        let (single, index) = (single_path(stem), index_path(stem));
        if source.contains(&single) {
            let mut weights = Self::empty(source.shown(&single));
            weights.add_path(source, &single, component, problems);
            return weights.finished(component, problems);
        }
        let before = problems.len();
        let Some(text) = source.text(&index, problems) else {
            if problems.len() == before {
                let hint = format!(", and so is {}", source.shown(&index));
                problems.push(Problem::MissingFile { path: source.shown(&single), hint });
            }
            return None;
        };
        let map = match read_index(&text) {
            Ok(map) => map,
            Err(error) => {
                problems.push(Problem::unreadable(source.shown(&index), error));
                return None;
            }
        };
        let folder = stem.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let mut shards: Vec<&String> = map.values().collect();
        shards.sort();
        shards.dedup();
        let mut weights = Self::empty(source.shown(&index));
        for shard in shards {
            let before = weights.files.len();
            weights.add_path(source, &format!("{folder}{shard}"), component, problems);
            if weights.files.len() == before {
                let held = map.iter().filter(|(_, file)| *file == shard);
                weights.unread.extend(held.map(|(tensor, _)| tensor.clone()));
            }
        }
        weights.finished(component, problems)
    }

    /// The part of a file that belongs to a component.
    pub(super) fn of(file: &OpenFile, component: Component, problems: &mut Vec<Problem>) -> Option<Self> {
        let mut weights = Self::empty(file.blob.path().to_owned());
        let bare = file.bare();
        let is_part = |name: &str| match prefixed(name) {
            Some((other, _)) => other == component,
            None => bare == Some(component),
        };
        weights.add(file, component, &is_part, problems);
        weights.finished(component, problems)
    }

    fn empty(label: String) -> Self {
        let (files, entries, unread) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Self { files, entries, label, unread, tensors: 0, bytes: 0, is_refused: false, metadata: Vec::new() }
    }

    fn add_path(&mut self, source: Source, path: &str, component: Component, problems: &mut Vec<Problem>) {
        match OpenFile::open(source, path) {
            Ok(file) => self.add(&file, component, &|_| true, problems),
            Err(problem) => problems.push(problem),
        }
    }

    fn add(
        &mut self,
        file: &OpenFile,
        component: Component,
        is_part: &dyn Fn(&str) -> bool,
        problems: &mut Vec<Problem>,
    ) {
        let path = file.blob.path();
        if let Some(reason) = unsupported_file(&file.header) {
            problems.push(Problem::unreadable(path, reason));
            self.is_refused = true;
        }
        for (name, info) in file.header.tensors.iter().filter(|(name, _)| is_part(name)) {
            let rest = match prefixed(name) {
                Some((named, rest)) if named == component => rest,
                _ => name,
            };
            let numbers = match info.dtype {
                FileDtype::Blocks(kind) => Some(Numbers::Blocks(kind)),
                FileDtype::Other(_) => None,
            };
            let entry = Entry { file: self.files.len(), name: name.clone(), info: info.clone(), numbers };
            (self.tensors, self.bytes) = (self.tensors + 1, self.bytes + info.range.len());
            if self.entries.insert(canonical(component, rest).into_owned(), entry).is_some() {
                problems.push(Problem::unreadable(path, format!("tensor `{name}` is in another shard, too")));
            }
        }
        if !file.header.said.is_empty() {
            self.metadata.push(FileMetadata { file: path.to_owned(), lines: file.header.said.clone() });
        }
        self.files.push(Arc::clone(&file.blob));
    }

    /// Joins the tensors that say how others are stored. `None` where no file could be opened.
    fn finished(mut self, component: Component, problems: &mut Vec<Problem>) -> Option<Self> {
        if self.files.is_empty() {
            return None;
        }
        let mut joining = Joining { entries: &mut self.entries, files: &self.files, faults: Vec::new() };
        joining.join();
        for (file, reason) in joining.faults {
            problems.push(Problem::unreadable(self.files[file].path(), reason));
            self.is_refused = true;
        }
        if component == Component::T5 && !self.entries.contains_key("shared.weight") {
            // Some files have the embedding by its other name alone.
            let shared = self.entries.remove("encoder.embed_tokens.weight");
            self.entries.extend(shared.map(|entry| ("shared.weight".to_owned(), entry)));
        }
        if component == Component::Transformer
            && self.unread.is_empty()
            && let Some(reason) = self.stripped()
        {
            problems.push(Problem::unreadable(self.label.clone(), reason));
            self.is_refused = true;
        }
        Some(self)
    }

    /// Whether there are tensors of a component.
    pub(super) fn is_of(&self, component: Component) -> bool {
        self.entries.keys().any(|name| bare(name) == Some(component))
    }

    /// What a file lacks from which a tool has taken the embedders.
    fn stripped(&self) -> Option<String> {
        const EMBEDDERS: [&str; 4] = ["img_in", "time_in", "vector_in", "guidance_in"];
        let has = |beginning: &str| self.entries.keys().any(|name| name.starts_with(beginning));
        let missing: Vec<&str> = EMBEDDERS.into_iter().filter(|name| !has(&format!("{name}."))).collect();
        let is_stripped = has("double_blocks.") && missing.contains(&"img_in") && missing.contains(&"time_in");
        is_stripped.then(|| {
            let missing = missing.join(", ");
            format!("{missing} are missing, as some tools leave them out: use a complete file of this model")
        })
    }

    /// The path of the file that has an entry.
    pub(super) fn path_of(&self, entry: &Entry) -> &str {
        self.files[entry.file].path()
    }
}

/// Why a file's way of storing weights is not supported, where the file says it of itself.
fn unsupported_file(header: &Header) -> Option<String> {
    let is_nunchaku = header.tensors.contains_key("transformer_blocks.0.qkv_proj.qweight")
        || header.tensors.keys().any(|name| name.ends_with(".wscales") || name.ends_with(".qweight"));
    if is_nunchaku {
        let reason =
            "packed for nunchaku's own kernels (SVDQuant or AWQ): use the fp8, GGUF, NF4 or bf16 file of this model";
        return Some(reason.to_owned());
    }
    if header.tensors.keys().any(|name| name.ends_with(".weight._data")) {
        return Some("quantized by quanto: use the fp8, GGUF, NF4 or bf16 file of this model".to_owned());
    }
    unsupported_layer(&header.metadata)
}
