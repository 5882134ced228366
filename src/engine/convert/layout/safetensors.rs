//! A safetensors file: the length of a header in JSON, the header, then the tensors without gaps.

use std::cmp::Reverse;

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::{Layout, Row};
use crate::engine::convert::plan::Stored;

/// Bytes that the tensors' beginning is a multiple of, as in files of the library that defines the format.
const ALIGNMENT: usize = 8;

/// Places the tensors: wide numbers first, so that all of them are aligned.
pub(super) fn layout(rows: &[Row]) -> Layout {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| Reverse(rows[row].stored.bytes(1)));
    let mut header = Map::new();
    // transformers refuses a file that does not say it.
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let (mut offset, mut places) = (0, vec![0; rows.len()]);
    for index in order {
        let row = &rows[index];
        let end = offset + row.bytes();
        let info = json!({ "dtype": name(row.stored), "shape": row.shape, "data_offsets": [offset, end] });
        header.insert(row.name.clone(), info);
        places[index] = offset;
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let header = [&(header.len() as u64).to_le_bytes(), &header[..]].concat();
    let start = header.len() as u64;
    let places = places.into_iter().map(|offset| start + offset).collect();
    Layout { header, places, bytes: start + offset }
}

/// The format's name for a type.
fn name(stored: Stored) -> &'static str {
    match stored {
        Stored::Plain(DType::F32) => "F32",
        Stored::Plain(DType::F16) => "F16",
        Stored::Plain(DType::BF16) => "BF16",
        Stored::Plain(DType::U8) => "U8",
        Stored::E4m3 => "F8_E4M3",
        other => unreachable!("no tensor of a safetensors file is {other:?}"),
    }
}
