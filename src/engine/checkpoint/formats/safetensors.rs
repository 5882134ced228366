//! safetensors: a header in JSON, then the tensors' bytes; and the index of a model in several such files.

mod json;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use serde::Deserialize;

use super::Header;
use crate::engine::checkpoint::metadata::{Value, lines};
use crate::engine::checkpoint::source::Blob;

/// Longest header that is read; as in the library that defines the format.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// Bytes of a header that are read from the file at a time.
const WINDOW_BYTES: usize = 64 << 10;

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
    let text = Section::header_of(blob)?;
    let (start, window) = (text.end, WINDOW_BYTES.min(text.end - text.at));
    let mut header = json::read(BufReader::with_capacity(window, text))?;
    let expected = data_bytes(&header)?.checked_add(start);
    if expected != Some(blob.bytes()) {
        let expected = expected.map_or("too many to count".to_owned(), |bytes| bytes.to_string());
        return Err(format!("it has {} bytes, its header says {expected}", blob.bytes()));
    }
    for info in header.tensors.values_mut() {
        info.range = start + info.range.start..start + info.range.end;
    }
    // Every file of torch's tools says that of its format.
    let said = header.metadata.iter().filter(|(key, text)| (key.as_str(), text.as_str()) != ("format", "pt"));
    header.said = lines(said.map(|(key, text)| (key.as_str(), Value::Text(text))));
    Ok(header)
}

/// Bytes of all tensors, which follow each other without gaps.
fn data_bytes(header: &Header) -> Result<usize, String> {
    let ranges = header.tensors.iter().map(|(name, info)| (&info.range, name));
    let mut by_place: Vec<(&Range<usize>, &String)> = ranges.collect();
    by_place.sort_unstable_by_key(|(range, _)| (range.start, range.end));
    let mut end = 0;
    for (range, name) in by_place {
        if range.start != end {
            let start = range.start;
            return Err(format!("tensor `{name}` begins at byte {start} of the data, the one before it ends at {end}"));
        }
        end = range.end;
    }
    Ok(end)
}

/// Some bytes of a file.
struct Section<'a> {
    blob: &'a Blob,
    at: usize,
    end: usize,
}

impl<'a> Section<'a> {
    /// The text of a file's header, behind its length. The tensors begin where it ends.
    fn header_of(blob: &'a Blob) -> Result<Self, String> {
        let mut length = [0; size_of::<u64>()];
        if blob.bytes() < length.len() {
            return Err(format!("it has {} bytes", blob.bytes()));
        }
        blob.read(0, &mut length)?;
        let bytes = usize::try_from(u64::from_le_bytes(length)).ok().filter(|&bytes| bytes <= HEADER_BYTES_MAX);
        let end = bytes.map(|bytes| length.len() + bytes).filter(|&end| end <= blob.bytes());
        let end = end.ok_or_else(|| "its header would be longer than the file, or than any header".to_owned())?;
        Ok(Self { blob, at: length.len(), end })
    }
}

impl Read for Section<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = out.len().min(self.end - self.at);
        self.blob.read(self.at, &mut out[..bytes]).map_err(io::Error::other)?;
        self.at += bytes;
        Ok(bytes)
    }
}
