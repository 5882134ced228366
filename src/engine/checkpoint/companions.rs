//! Tensors that say how another one is stored: scales, tables of levels, and the states of quantized weights. They are joined
//! with the tensor that they belong to.

mod bitsandbytes;
mod fp8;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::entry::Entry;
use super::formats::FileDtype;
use super::numbers::Numbers;
use super::source::Blob;

pub(super) use fp8::unsupported_layer;

/// Largest companion that is read when the checkpoint is opened: the scales of a matrix's rows, or of scales.
const VALUES_MAX: usize = 1 << 24;

/// Longest text in a companion.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// The tensors of a component while companions are joined.
pub(super) struct Joining<'a> {
    pub(super) entries: &'a mut BTreeMap<String, Entry>,
    pub(super) files: &'a [Arc<Blob>],
    /// What is wrong: a file, and a reason.
    pub(super) faults: Vec<(usize, String)>,
}

/// A tensor that cannot be joined, and why.
type Joined = Result<(), String>;

impl Joining<'_> {
    /// Joins all companions with their tensors; none of them is left as a tensor of its own.
    pub(super) fn join(&mut self) {
        bitsandbytes::join(self);
        fp8::join(self);
    }

    /// The names that end so, without that ending.
    fn stems(&self, ending: &str) -> Vec<String> {
        self.entries.keys().filter_map(|name| name.strip_suffix(ending)).map(str::to_owned).collect()
    }

    fn take(&mut self, name: &str) -> Option<Entry> {
        self.entries.remove(name)
    }

    fn required(&mut self, name: &str) -> Result<Entry, String> {
        self.take(name).ok_or_else(|| format!("`{name}` is missing"))
    }

    fn note(&mut self, file: usize, tensor: &str, outcome: Joined) {
        if let Err(reason) = outcome {
            self.faults.push((file, format!("tensor `{tensor}`: {reason}")));
        }
    }

    fn file(&self, entry: &Entry) -> Arc<Blob> {
        Arc::clone(&self.files[entry.file])
    }

    /// The numbers of a small tensor.
    fn values(&self, name: &str, entry: &Entry) -> Result<Vec<f32>, String> {
        let count = entry.info.elements();
        match entry.numbers {
            Some(Numbers::Blocks(kind)) if kind.numbers() == 1 && count <= VALUES_MAX => {
                let mut bytes = vec![0; count * kind.bytes()];
                self.file(entry).read(entry.info.range.start, &mut bytes)?;
                let mut values = vec![0.0; count];
                kind.decode(&bytes, &mut values);
                Ok(values)
            }
            _ => Err(format!("`{name}` is no list of at most {VALUES_MAX} numbers")),
        }
    }

    fn value(&self, name: &str, entry: &Entry) -> Result<f32, String> {
        match self.values(name, entry)?[..] {
            [value] if value.is_finite() => Ok(value),
            _ => Err(format!("`{name}` is not one number")),
        }
    }

    /// What a tensor of bytes says in JSON.
    fn json<T: DeserializeOwned>(&self, name: &str, entry: &Entry) -> Result<T, String> {
        if !is_of(entry, "U8") || entry.info.range.len() > TEXT_BYTES_MAX {
            return Err(format!("`{name}` is no text"));
        }
        let mut bytes = vec![0; entry.info.range.len()];
        self.file(entry).read(entry.info.range.start, &mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| format!("`{name}`: {error}"))
    }
}

/// Whether a tensor has this type, which cannot be decoded by itself.
fn is_of(entry: &Entry, dtype: &str) -> bool {
    matches!(&entry.info.dtype, FileDtype::Other(name) if name == dtype)
}
