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

/// What a file says of itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// Texts about the file, by their keys.
    pub(super) metadata: BTreeMap<String, String>,
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
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A sound safetensors file.
    fn sound() -> Vec<u8> {
        let header = br#"{"__metadata__":{"a":"b"},"x":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},"y":{"dtype":"F32","shape":[],"data_offsets":[6,10]}}"#;
        [&(header.len() as u64).to_le_bytes()[..], header, &[0; 10]].concat()
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_refused_or_sound(
            patches in vec((any::<proptest::sample::Index>(), vec(any::<u8>(), 1..9)), 0..5),
            digits in vec((any::<proptest::sample::Index>(), b'0'..=b'9'), 0..5),
            cut in proptest::option::of(any::<proptest::sample::Index>()),
        ) {
            let mut bytes = sound();
            for (at, patch) in patches.into_iter().chain(digits.into_iter().map(|(at, digit)| (at, vec![digit]))) {
                let at = at.index(bytes.len());
                let end = (at + patch.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&patch[..end - at]);
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            let length = bytes.len();
            if let Ok(header) = read_header(&Blob::made("made", bytes)) {
                for info in header.tensors.values() {
                    prop_assert!(info.range.end <= length);
                    if let FileDtype::Blocks(kind) = info.dtype {
                        prop_assert_eq!(info.elements() / kind.numbers() * kind.bytes(), info.range.len());
                    }
                }
            }
        }
    }

    #[test]
    fn a_sound_file_is_read() {
        let header = read_header(&Blob::made("made", sound())).expect("sound");
        assert_eq!(header.metadata["a"], "b");
        assert_eq!((header.tensors["x"].shape.as_slice(), header.tensors["y"].range.len()), (&[2, 3][..], 4));
        assert_eq!(header.tensors["x"].dtype, FileDtype::Blocks(BlockType::F8E4M3));
    }

    fn error_of(bytes: &[u8]) -> String {
        read_header(&Blob::made("made", bytes.to_vec())).expect_err("no weights")
    }

    #[test]
    fn what_is_no_weight_file_is_said_to_be_what_it_is() {
        let cases: [(&[u8], &str); 6] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
            (b"\n<!DOCTYPE html><html>", "a web page"),
            (b"<html>", "a web page"),
            (b"PK\x03\x04 data.pkl", "a PyTorch archive"),
            (b"GGUF", "not a complete GGUF file"),
            (b"\x08", "not a complete safetensors file: it has 1 bytes"),
        ];
        for (bytes, words) in cases {
            let error = error_of(bytes);
            assert!(error.starts_with(words), "{error}");
        }
    }
}
