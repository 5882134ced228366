//! safetensors: a header in JSON, then the tensors' bytes; and the index of a model in several such files.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::{FileDtype, Header, TensorInfo};
use crate::engine::blocks::BlockType;
use crate::engine::checkpoint::metadata::{Value, lines};
use crate::engine::checkpoint::source::Blob;

/// Longest header that is read; as in the library that defines the format.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// The path of a model in one file.
pub(in crate::engine::checkpoint) fn single_path(stem: &str) -> String {
    format!("{stem}.safetensors")
}

/// The path of the index of a model in several files.
pub(in crate::engine::checkpoint) fn index_path(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}

/// The tensors of an index, and the file of each, beside the index.
///
/// # Errors
/// When the text is malformed.
pub(in crate::engine::checkpoint) fn read_index(text: &str) -> Result<BTreeMap<String, String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    serde_json::from_str::<Index>(text).map(|index| index.weight_map)
}

/// Reads a file's header.
///
/// # Errors
/// When the file is incomplete or malformed, or cannot be read.
pub(super) fn read_header(blob: &Blob) -> Result<Header, String> {
    let (start, metadata) = header_of(blob)?;
    let expected = metadata.data_len().checked_add(start);
    if expected != Some(blob.bytes()) {
        let expected = expected.map_or("too many to count".to_owned(), |bytes| bytes.to_string());
        return Err(format!("it has {} bytes, its header says {expected}", blob.bytes()));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        (name, TensorInfo { dtype: dtype_of(info.dtype), shape: info.shape.clone(), range })
    });
    let texts = metadata.metadata().iter().flatten();
    let texts: BTreeMap<String, String> = texts.map(|(key, text)| (key.clone(), text.clone())).collect();
    // Every file of torch's tools says that.
    let said = texts.iter().filter(|(key, text)| (key.as_str(), text.as_str()) != ("format", "pt"));
    let said = lines(said.map(|(key, text)| (key.as_str(), Value::Text(text))));
    Ok(Header { tensors: tensors.collect(), metadata: texts, said })
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
    // Parsing also checks that the tensors follow each other without gaps, each as long as its shape.
    let metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    Ok((length.len() + bytes, metadata))
}

fn dtype_of(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::BF16 => FileDtype::Blocks(BlockType::Bf16),
        Dtype::F16 => FileDtype::Blocks(BlockType::F16),
        Dtype::F32 => FileDtype::Blocks(BlockType::F32),
        Dtype::F8_E4M3 => FileDtype::Blocks(BlockType::F8E4M3),
        Dtype::F8_E5M2 => FileDtype::Blocks(BlockType::F8E5M2),
        other => FileDtype::Other(format!("{other:?}")),
    }
}
