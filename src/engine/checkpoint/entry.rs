//! A tensor in a file, and how it is stored there.

use super::formats::TensorInfo;
use super::numbers::Numbers;

/// A tensor, and the file that has it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its file, by the number that it has in its component.
    pub(super) file: usize,
    /// Its name in the file.
    pub(super) name: String,
    /// With the shape that the model sees.
    pub(super) info: TensorInfo,
    /// How it is stored; `None` where it cannot be decoded.
    pub(super) numbers: Option<Numbers>,
}
