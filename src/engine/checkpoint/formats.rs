//! Formats of weight files, one file each: what a file says of its tensors. Which format a file has, its content says.
//!
//! Must not know which tensors a model needs.

mod gguf;
pub(super) mod safetensors;

use std::collections::BTreeMap;
use std::ops::Range;

use super::source::Blob;
use crate::engine::blocks::BlockType;
use crate::engine::models::flux1::text::tokens::Vocabulary;

/// Maximum tensors of a file; FLUX.1-dev has 780.
const TENSORS_MAX: u64 = 65_536;

/// Maximum entries of a file's metadata. Published files have below a hundred, and one more for each reshaped tensor.
const METADATA_MAX: u64 = 16_384;

/// Longest name of a tensor in bytes; the tools that write GGUF allow 127.
const NAME_BYTES_MAX: usize = 1024;

/// What a file says of itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// Texts about the file, by their keys.
    pub(super) metadata: BTreeMap<String, String>,
    /// What the file says of itself, for people.
    pub(super) said: Vec<String>,
}

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
    /// One that is decoded without other tensors.
    Blocks(BlockType),
    /// Another one, by the format's name for it.
    Other(String),
}

impl TensorInfo {
    /// How many numbers it has.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Reads a file's header, in whichever format it is.
///
/// # Errors
/// When it is no weight file, is incomplete or malformed, or cannot be read.
pub(super) fn read_header(blob: &Blob) -> Result<Header, String> {
    if gguf::is_gguf(blob) {
        return gguf::read_header(blob).map_err(|error| format!("not a complete GGUF file: {error}"));
    }
    if let Some(reason) = another_format(blob)? {
        return Err(reason.to_owned());
    }
    safetensors::read_header(blob).map_err(|error| format!("not a complete safetensors file: {error}"))
}

/// A count of a header, if it is not beyond any file's.
fn counted(what: &str, count: u64, max: u64) -> Result<u64, String> {
    if count > max { Err(format!("it says {count} {what}, at most {max} are supported")) } else { Ok(count) }
}

/// Reads T5's tokenizer from a file of weights that has it. `None` for any other.
///
/// # Errors
/// When it is malformed, or the file cannot be read.
pub(super) fn read_vocabulary(blob: &Blob) -> Result<Option<Vocabulary>, String> {
    if gguf::is_gguf(blob) { gguf::read_vocabulary(blob) } else { Ok(None) }
}

/// What a file is that is mistaken for weights.
fn another_format(blob: &Blob) -> Result<Option<&'static str>, String> {
    /// Bytes that show it.
    const BEGINNING_BYTES: usize = 64;
    let mut bytes = vec![0; BEGINNING_BYTES.min(blob.bytes())];
    blob.read(0, &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).trim_start().to_ascii_lowercase();
    let begins = |beginning: &str| text.starts_with(beginning);
    Ok(if begins("version https://git-lfs") {
        Some("a Git LFS pointer, not the file itself: fetch it with `git lfs pull` or `fluxserve models download`")
    } else if begins("<!doctype") || begins("<html") || begins("<?xml") {
        Some("a web page, not the file itself: download it again, with an access token if its repository asks for one")
    } else if begins("pk\u{3}\u{4}") {
        Some("a PyTorch archive, which may run code when it is read: use the safetensors or GGUF file of this model")
    } else {
        None
    })
}

#[cfg(test)]
mod tests;
