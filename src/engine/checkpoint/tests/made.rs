//! Weight files that are put together by hand, from the reference checkpoint's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::reference;
use crate::domain::model::{CompletedFiles, ModelFiles};

/// The tensors of a file: type, shape, bytes.
pub(super) struct Made {
    pub(super) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub(super) metadata: BTreeMap<String, String>,
    folder: TempDir,
}

impl Made {
    /// The reference checkpoint's transformer, in the names of its authors.
    pub(super) fn transformer() -> Self {
        Self::of("FLUX.1-dev/flux1-dev.safetensors")
    }

    /// The tensors of a reference file.
    pub(super) fn of(path: &str) -> Self {
        let bytes = std::fs::read(reference(path)).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("a weight file").tensors().into_iter();
        let tensors = tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())));
        Self { tensors: tensors.collect(), metadata: BTreeMap::new(), folder: tempfile::tempdir().expect("a folder") }
    }

    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        self
    }

    pub(super) fn without(mut self, is_dropped: impl Fn(&str) -> bool) -> Self {
        self.tensors.retain(|name, _| !is_dropped(name));
        self
    }

    pub(super) fn with(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes.to_vec()));
        self
    }

    pub(super) fn noted(mut self, key: &str, text: &str) -> Self {
        self.metadata.insert(key.to_owned(), text.to_owned());
        self
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("any-name.safetensors")
    }

    /// The file, with or without the reference checkpoint for the rest.
    pub(super) fn files(&self, has_base: bool) -> ModelFiles {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
        });
        let metadata = self.metadata.clone().into_iter().collect();
        safetensors::serialize_to_file(views, Some(metadata), &self.path()).expect("written");
        completed(self.path(), has_base)
    }
}

/// A reference folder, in links, of which a test may replace files.
pub(super) struct Linked(TempDir);

impl Linked {
    pub(super) fn new(path: &str) -> Self {
        let linked = Self(tempfile::tempdir().expect("a folder"));
        linked.link(&reference(path), "");
        linked
    }

    fn link(&self, folder: &Path, below: &str) {
        std::fs::create_dir_all(self.path().join(below)).expect("made");
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(std::ffi::OsStr::to_str).expect("a name");
            let below = format!("{below}{name}");
            if path.is_dir() {
                self.link(&path, &format!("{below}/"));
            } else {
                std::os::unix::fs::symlink(&path, self.path().join(below)).expect("linked");
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Without a file or a folder.
    pub(super) fn without(self, path: &str) -> Self {
        let path = self.path().join(path);
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.expect("it was there");
        self
    }

    /// With another file, in place of the one of that name if there is one.
    pub(super) fn with(self, path: &str, content: &str) -> Self {
        let linked = if self.path().join(path).exists() { self.without(path) } else { self };
        let path = linked.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, content).expect("written");
        linked
    }

    pub(super) fn files(&self) -> ModelFiles {
        ModelFiles::Directory(self.path().to_owned())
    }
}

/// A file, with or without the reference checkpoint for the rest.
pub(super) fn completed(path: PathBuf, has_base: bool) -> ModelFiles {
    let base = has_base.then(|| ModelFiles::Directory(reference("FLUX.1-dev")));
    ModelFiles::Completed(Box::new(CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base,
        attachments: crate::domain::model::Attachments::default(),
    }))
}

/// Numbers as a file has them.
pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
