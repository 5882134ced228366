//! GGUF, versions 2 and 3: metadata, a table of tensors, then the tensors' bytes.
//!
//! Nothing in a header is trusted. Every length, count and offset is compared with the file before memory is taken for it,
//! and long texts and arrays stay in the file.

mod cursor;
mod types;
mod values;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::Range;

use super::{FileDtype, Header, METADATA_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorInfo, counted};
use crate::engine::blocks::BlockType;
use crate::engine::checkpoint::metadata::lines;
use crate::engine::checkpoint::source::Blob;
use crate::engine::models::flux1::text::tokens::Vocabulary;

use cursor::Cursor;
use values::Value;

/// The first bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";

/// Longest key in bytes, as the format says.
const KEY_BYTES_MAX: usize = 65_535;

/// Maximum dimensions of a tensor, as in the library that defines the format.
const DIMENSIONS_MAX: u32 = 4;

/// A tensor begins at a multiple of this many bytes unless the metadata says otherwise.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;
const ALIGNMENT_KEY: &str = "general.alignment";

/// How the keys begin that say what a file is.
const GENERAL: &str = "general.";

/// Before a tensor's name: its shape where the table has another one, because rows were too short for its type.
const SHAPE_KEY: &str = "comfy.gguf.orig_shape.";

/// Whether a file begins as GGUF does.
pub(super) fn is_gguf(blob: &Blob) -> bool {
    let mut magic = [0; MAGIC.len()];
    blob.bytes() >= magic.len() && blob.read(0, &mut magic).is_ok() && magic == MAGIC
}

/// Reads a file's header.
///
/// # Errors
/// When the file is incomplete or malformed, or cannot be read.
pub(super) fn read_header(blob: &Blob) -> Result<Header, String> {
    let mut cursor = Cursor::new(blob);
    let Beginning { tensors, metadata } = Beginning::read(&mut cursor)?;
    let mut rows = Vec::new();
    for _ in 0..tensors {
        rows.push(Row::read(&mut cursor)?);
    }
    let start = data_start(cursor.at(), &metadata)?;
    let tensors = placed(rows, start, &metadata, blob)?;
    let said = said(&metadata);
    let texts = metadata.into_iter().filter_map(|(key, value)| Some((key, value.into_text()?)));
    Ok(Header { tensors, metadata: texts.collect(), said })
}

/// What the file says of itself, the general part first.
fn said(metadata: &BTreeMap<String, Value>) -> Vec<String> {
    let is_general = |key: &str| key.starts_with(GENERAL);
    let (general, others): (Vec<_>, Vec<_>) = metadata.iter().partition(|(key, _)| is_general(key));
    lines(general.into_iter().chain(others).map(|(key, value)| (key.as_str(), value.shown())))
}

/// Reads T5's tokenizer from a file's metadata. `None` where there is none.
///
/// # Errors
/// When the metadata is malformed, or cannot be read.
pub(super) fn read_vocabulary(blob: &Blob) -> Result<Option<Vocabulary>, String> {
    let Beginning { metadata, .. } = Beginning::read(&mut Cursor::new(blob))?;
    vocabulary::read(&metadata, blob)
}

/// What a file says before its tensors.
struct Beginning {
    /// How many tensors there are.
    tensors: u64,
    metadata: BTreeMap<String, Value>,
}

impl Beginning {
    fn read(cursor: &mut Cursor) -> Result<Self, String> {
        if cursor.take::<4>()? != MAGIC {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        let version = cursor.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(match version.swap_bytes() {
                2 | 3 => "it is big-endian; only little-endian files are supported".to_owned(),
                _ => format!("it is version {version}; versions 2 and 3 are supported"),
            });
        }
        let tensors = counted("tensors", cursor.u64()?, TENSORS_MAX)?;
        let entries = counted("entries of metadata", cursor.u64()?, METADATA_MAX)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = cursor.short_text("key", KEY_BYTES_MAX)?;
            let value = values::read(cursor).map_err(|error| format!("metadata `{key}`: {error}"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata `{key}` is there twice"));
            }
        }
        Ok(Self { tensors, metadata })
    }
}

/// Where the tensors' bytes begin, and what their places are multiples of.
#[derive(Clone, Copy)]
struct Start {
    at: usize,
    alignment: u64,
}

fn data_start(header_end: usize, metadata: &BTreeMap<String, Value>) -> Result<Start, String> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some(value) => value
            .unsigned()
            .filter(|alignment| (1..=ALIGNMENT_MAX).contains(alignment))
            .ok_or_else(|| format!("metadata `{ALIGNMENT_KEY}` must be a number from 1 to {ALIGNMENT_MAX}"))?,
    };
    let at = header_end.checked_next_multiple_of(alignment as usize).ok_or("its header is too long")?;
    Ok(Start { at, alignment })
}

/// A row of the table of tensors.
struct Row {
    name: String,
    /// The slowest dimension first, as everywhere else; the file has the fastest first.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Row {
    fn read(cursor: &mut Cursor) -> Result<Self, String> {
        let name = cursor.short_text("name of a tensor", NAME_BYTES_MAX)?;
        let of_tensor = |error: String| format!("tensor `{name}`: {error}");
        let dimensions = cursor.u32().map_err(of_tensor)?;
        if dimensions > DIMENSIONS_MAX {
            return Err(of_tensor(format!("it has {dimensions} dimensions, at most {DIMENSIONS_MAX} are supported")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = cursor.u64().map_err(of_tensor)?;
            shape.push(usize::try_from(size).map_err(|_| of_tensor("it is too large".to_owned()))?);
        }
        shape.reverse();
        let (kind, offset) = (cursor.u32().map_err(of_tensor)?, cursor.u64().map_err(of_tensor)?);
        Ok(Self { name, shape, kind, offset })
    }

    /// Its bytes in the file, checked against the file's length.
    fn range(&self, start: Start, blob: &Blob) -> Result<Range<usize>, String> {
        if !self.offset.is_multiple_of(start.alignment) {
            return Err(format!("it begins at {}, which is no multiple of {}", self.offset, start.alignment));
        }
        elements(&self.shape).ok_or("it is too large")?;
        let begin = usize::try_from(self.offset).ok().and_then(|offset| offset.checked_add(start.at));
        let bytes = match types::block_type(self.kind) {
            Some(kind) => self.bytes(kind)?,
            // How long it is, is not known; it is refused by name where it is needed.
            None => 0,
        };
        let range = begin.and_then(|begin| Some(begin..begin.checked_add(bytes)?));
        let range = range.ok_or("it is too large")?;
        if range.end > blob.bytes() {
            return Err(format!("it ends at byte {}, the file has {}", range.end, blob.bytes()));
        }
        Ok(range)
    }

    fn bytes(&self, kind: BlockType) -> Result<usize, String> {
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.numbers()) {
            let name = types::name(self.kind);
            return Err(format!("rows of {row} numbers do not consist of {name}'s blocks of {}", kind.numbers()));
        }
        let blocks = elements(&self.shape).map(|elements| elements / kind.numbers());
        blocks.and_then(|blocks| blocks.checked_mul(kind.bytes())).ok_or_else(|| "it is too large".to_owned())
    }
}

/// Numbers in a shape, if they can be counted.
fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}

/// The tensors by name, all inside the file, without overlaps.
fn placed(
    rows: Vec<Row>,
    start: Start,
    metadata: &BTreeMap<String, Value>,
    blob: &Blob,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut tensors = BTreeMap::new();
    for row in rows {
        let of_tensor = |error: String| format!("tensor `{}`: {error}", row.name);
        let range = row.range(start, blob).map_err(of_tensor)?;
        let shape = match metadata.get(&format!("{SHAPE_KEY}{}", row.name)) {
            None => row.shape.clone(),
            Some(value) => reshaped(value, &row.shape, blob).map_err(of_tensor)?,
        };
        let dtype = match types::block_type(row.kind) {
            Some(kind) => FileDtype::Blocks(kind),
            None => FileDtype::Other(types::name(row.kind)),
        };
        if tensors.insert(row.name.clone(), TensorInfo { dtype, shape, range }).is_some() {
            return Err(format!("tensor `{}` is there twice", row.name));
        }
    }
    let mut by_place: Vec<(&String, &Range<usize>)> = tensors.iter().map(|(name, info)| (name, &info.range)).collect();
    by_place.sort_unstable_by_key(|(_, range)| (range.start, range.end));
    let overlap = by_place.windows(2).find(|pair| pair[1].1.start < pair[0].1.end);
    if let Some([(first, _), (second, _)]) = overlap {
        return Err(format!("tensors `{first}` and `{second}` overlap"));
    }
    Ok(tensors)
}

fn reshaped(value: &Value, shape: &[usize], blob: &Blob) -> Result<Vec<usize>, String> {
    let wrong = || format!("metadata `{SHAPE_KEY}…` is no shape of as many numbers as {shape:?}");
    let sizes = value.integers(blob, DIMENSIONS_MAX as usize)?.ok_or_else(wrong)?;
    let sizes: Vec<usize> = sizes.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| wrong())?;
    if elements(&sizes) == elements(shape) { Ok(sizes) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests;
