//! Adapters that are put together by hand, from recorded ones or from numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// The tensors of a file: type, shape, bytes.
pub(super) struct Made {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
    folder: TempDir,
}

impl Made {
    pub(super) fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { tensors: BTreeMap::new(), metadata: BTreeMap::new(), folder }
    }

    /// The tensors of a file.
    pub(super) fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("a weight file").tensors().into_iter();
        let tensors = tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())));
        Self { tensors: tensors.collect(), ..Self::empty() }
    }

    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        self
    }

    /// With other tensors for those whose names end so.
    pub(super) fn replaced(mut self, ending: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        for (_, tensor) in self.tensors.iter_mut().filter(|(name, _)| name.ends_with(ending)) {
            *tensor = (dtype, shape.to_vec(), bytes.to_vec());
        }
        self
    }

    pub(super) fn with(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        self
    }

    /// With a tensor of counted numbers: 1, 2, 3, …
    pub(super) fn counted(self, name: &str, shape: &[usize]) -> Self {
        let count: usize = shape.iter().product();
        let bytes = (1..=count).flat_map(|number| (number as f32).to_le_bytes()).collect();
        self.with(name, Dtype::F32, shape, bytes)
    }

    pub(super) fn noted(mut self, key: &str, text: &str) -> Self {
        self.metadata.insert(key.to_owned(), text.to_owned());
        self
    }

    /// The file, for as long as this lives.
    pub(super) fn path(&self) -> PathBuf {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
        });
        let metadata = self.metadata.clone().into_iter().collect();
        let path = self.folder.path().join("adapter.safetensors");
        safetensors::serialize_to_file(views, Some(metadata), &path).expect("written");
        path
    }
}
