//! Formats of weight files, one file each: what a file says of its tensors.
//!
//! Must not know which tensors a model needs.

pub(super) mod safetensors;

use std::ops::Range;

use candle_core::DType;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    pub(super) dtype: FileDtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// The type of a tensor's numbers in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileDtype {
    /// BF16, F16 or F32.
    Float(DType),
    /// One that weights must not have, by the format's name for it.
    Other(String),
}
