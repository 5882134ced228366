//! A GGUF file, version 3: what ComfyUI-GGUF, stable-diffusion.cpp and this program read.

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use super::{Layout, Row};
use crate::domain::conversion::ConvertedComponent;
use crate::engine::convert::plan::Stored;

const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;

/// A tensor begins at a multiple of this many bytes; what readers expect unless the metadata says otherwise.
const ALIGNMENT: u64 = 32;

/// The version of the blocks' formats.
const QUANTIZATION_VERSION: u32 = 2;

/// The format's numbers for the types of metadata.
const U32: u32 = 4;
const STRING: u32 = 8;

/// Places the tensors of a component whose matrices have such blocks.
pub(super) fn layout(component: ConvertedComponent, kind: GgmlDType, rows: &[Row]) -> Layout {
    let architecture = match component {
        ConvertedComponent::Transformer => "flux",
        ConvertedComponent::T5 => "t5encoder",
    };
    let entries = [
        entry("general.architecture", STRING, &text(architecture)),
        entry("general.quantization_version", U32, &QUANTIZATION_VERSION.to_le_bytes()),
        entry("general.file_type", U32, &file_type(kind).to_le_bytes()),
    ];
    let mut header = [MAGIC, &VERSION.to_le_bytes()].concat();
    header.extend([rows.len() as u64, entries.len() as u64].into_iter().flat_map(u64::to_le_bytes));
    header.extend(entries.concat());
    let (mut offset, mut offsets) = (0_u64, Vec::with_capacity(rows.len()));
    for row in rows {
        header.extend(text(&row.name));
        header.extend((row.shape.len() as u32).to_le_bytes());
        // The fastest dimension first.
        header.extend(row.shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        header.extend(type_number(row.stored).to_le_bytes());
        header.extend(offset.to_le_bytes());
        offsets.push(offset);
        // The last tensor is padded, too: some readers take all of them as one piece.
        offset = (offset + row.bytes()).next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    let start = header.len() as u64;
    let places = offsets.into_iter().map(|offset| start + offset).collect();
    Layout { header, places, bytes: start + offset }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], value].concat()
}

/// llama.cpp's number for a file whose matrices have such blocks.
fn file_type(kind: GgmlDType) -> u32 {
    match kind {
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q8_0 => 7,
        // Q4_K_S: the same type in all matrices.
        GgmlDType::Q4K => 14,
        other => unreachable!("no format has blocks of {other:?}"),
    }
}

/// GGML's number for a type.
fn type_number(stored: Stored) -> u32 {
    match stored {
        Stored::Plain(DType::F32) => 0,
        Stored::Plain(DType::F16) => 1,
        Stored::Blocks(GgmlDType::Q4_0) => 2,
        Stored::Blocks(GgmlDType::Q8_0) => 8,
        Stored::Blocks(GgmlDType::Q4K) => 12,
        Stored::Plain(DType::BF16) => 30,
        other => unreachable!("no tensor of a GGUF file is {other:?}"),
    }
}
