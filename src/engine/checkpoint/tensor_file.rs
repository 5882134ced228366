//! A weight file by itself, for files whose tensors belong to no checkpoint.

use std::path::Path;

use super::files::OpenFile;
use super::formats::{FileDtype, TensorInfo};
use super::metadata::FileMetadata;
use super::places::open_at;
use super::problem::Problem;

/// A file whose header was read. Tensors are read one by one when they are asked for.
#[derive(Debug)]
pub(crate) struct TensorFile(OpenFile);

impl TensorFile {
    /// Opens a file and reads its header, in whichever format it is.
    ///
    /// # Errors
    /// When it cannot be read, or is malformed.
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let no_file = || Problem::unreadable(path.display().to_string(), "not a file that can be read");
        open_at(path).ok_or_else(no_file)?.map(Self)
    }

    /// Its path, for messages.
    pub(crate) fn path(&self) -> &str {
        self.0.blob.path()
    }

    /// The names of its tensors, in their order.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.header.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.info(name).shape
    }

    /// The name of the type of a tensor's numbers.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub(crate) fn dtype(&self, name: &str) -> String {
        match &self.info(name).dtype {
            FileDtype::Blocks(kind) => format!("{kind:?}").to_uppercase(),
            FileDtype::Other(name) => name.clone(),
        }
    }

    /// Whether a tensor's numbers are of a type that weights have: floating point, or blocks.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub(crate) fn has_weights(&self, name: &str) -> bool {
        let info = self.info(name);
        match &info.dtype {
            FileDtype::Blocks(kind) => info.elements().is_multiple_of(kind.numbers()),
            FileDtype::Other(name) => name == "F64",
        }
    }

    /// Reads a tensor for which [`Self::has_weights`].
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub(crate) fn weights(&self, name: &str) -> Result<Vec<f32>, String> {
        let info = self.info(name);
        let bytes = self.bytes(info)?;
        match &info.dtype {
            FileDtype::Blocks(kind) => {
                let mut weights = vec![0.0; info.elements()];
                kind.decode(&bytes, &mut weights);
                Ok(weights)
            }
            FileDtype::Other(_) => Ok(each(&bytes, f64::from_le_bytes).into_iter().map(|value| value as f32).collect()),
        }
    }

    /// Reads a tensor of few numbers of any type. `None` where it has more than `max`, or a type that is not known.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// Where there is no such tensor.
    pub(crate) fn few_numbers(&self, name: &str, max: usize) -> Result<Option<Vec<f64>>, String> {
        let info = self.info(name);
        if info.elements() > max {
            return Ok(None);
        }
        match &info.dtype {
            FileDtype::Blocks(_) if self.has_weights(name) => {
                Ok(Some(self.weights(name)?.into_iter().map(f64::from).collect()))
            }
            FileDtype::Blocks(_) => Ok(None),
            FileDtype::Other(dtype) => Ok(plain_numbers(dtype, &self.bytes(info)?)),
        }
    }

    /// A text of its metadata.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.header.metadata.get(key).map(String::as_str)
    }

    /// What it says of itself, if anything.
    pub(crate) fn metadata(&self) -> Option<FileMetadata> {
        let lines = self.0.header.said.clone();
        (!lines.is_empty()).then(|| FileMetadata { file: self.path().to_owned(), lines })
    }

    fn info(&self, name: &str) -> &TensorInfo {
        &self.0.header.tensors[name]
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; info.range.len()];
        self.0.blob.read(info.range.start, &mut bytes)?;
        Ok(bytes)
    }
}

/// Numbers of a type that the engine does not compute with.
fn plain_numbers(dtype: &str, bytes: &[u8]) -> Option<Vec<f64>> {
    Some(match dtype {
        "F64" => each(bytes, f64::from_le_bytes),
        "I64" => each(bytes, |bytes| i64::from_le_bytes(bytes) as f64),
        "U64" => each(bytes, |bytes| u64::from_le_bytes(bytes) as f64),
        "I32" => each(bytes, |bytes| f64::from(i32::from_le_bytes(bytes))),
        "U32" => each(bytes, |bytes| f64::from(u32::from_le_bytes(bytes))),
        "I16" => each(bytes, |bytes| f64::from(i16::from_le_bytes(bytes))),
        "U16" => each(bytes, |bytes| f64::from(u16::from_le_bytes(bytes))),
        "I8" => each(bytes, |bytes| f64::from(i8::from_le_bytes(bytes))),
        "U8" => each(bytes, |bytes| f64::from(u8::from_le_bytes(bytes))),
        _ => return None,
    })
}

fn each<const BYTES: usize>(bytes: &[u8], number: impl Fn([u8; BYTES]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<BYTES>().0.iter().map(|chunk| number(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_type_are_read() {
        for (dtype, bytes, expected) in [
            ("F64", (-2.5_f64).to_le_bytes().to_vec(), -2.5),
            ("I64", (-7_i64).to_le_bytes().to_vec(), -7.0),
            ("U64", 7_u64.to_le_bytes().to_vec(), 7.0),
            ("I32", (-7_i32).to_le_bytes().to_vec(), -7.0),
            ("U32", 7_u32.to_le_bytes().to_vec(), 7.0),
            ("I16", (-7_i16).to_le_bytes().to_vec(), -7.0),
            ("U16", 7_u16.to_le_bytes().to_vec(), 7.0),
            ("I8", vec![0xf9], -7.0),
            ("U8", vec![7], 7.0),
        ] {
            assert_eq!(plain_numbers(dtype, &bytes), Some(vec![expected]), "{dtype}");
        }
        assert_eq!(plain_numbers("BOOL", &[1]), None);
    }

    #[test]
    fn what_is_no_weight_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [folder.path().to_owned(), folder.path().join("none.safetensors")] {
            assert!(TensorFile::open(&path).is_err(), "{}", path.display());
        }
    }
}
