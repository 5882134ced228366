//! Values of the metadata. Long texts, and all arrays, stay in the file: what is kept is where they are.

use std::ops::Range;

use super::cursor::Cursor;
use crate::engine::checkpoint::metadata;
use crate::engine::checkpoint::source::Blob;

/// Longest text that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Any whole number.
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// A text that is too long to keep: how many bytes it has.
    LongText(usize),
    Array(Array),
}

/// An array, in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Array {
    /// The format's number of its elements' type.
    kind: u32,
    count: u64,
    range: Range<usize>,
}

impl Value {
    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as people see it.
    pub(super) fn shown(&self) -> metadata::Value<'_> {
        match self {
            Self::Integer(value) => metadata::Value::Scalar(value.to_string()),
            // `Display` has no exponents: a large number would have hundreds of digits.
            Self::Float(value) => metadata::Value::Scalar(format!("{value:?}")),
            Self::Bool(value) => metadata::Value::Scalar(value.to_string()),
            Self::Text(text) => metadata::Value::Text(text),
            Self::LongText(bytes) => metadata::Value::Omitted { what: "a text".to_owned(), bytes: *bytes },
            Self::Array(array) => {
                let what = format!("a table of {} values", array.count);
                metadata::Value::Omitted { what, bytes: array.range.len() }
            }
        }
    }

    pub(super) fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The whole numbers of an array of at most `max`. `None` for anything else.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn integers(&self, blob: &Blob, max: usize) -> Result<Option<Vec<i128>>, String> {
        self.elements(blob, max, |value| match value {
            Self::Integer(value) => Some(value),
            _ => None,
        })
    }

    /// The bytes of an array of at most `max`, whichever type of whole number holds them. `None` for anything else.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn bytes(&self, blob: &Blob, max: usize) -> Result<Option<Vec<u8>>, String> {
        self.elements(blob, max, |value| match value {
            Self::Integer(value) => u8::try_from(value).or_else(|_| i8::try_from(value).map(i8::cast_unsigned)).ok(),
            _ => None,
        })
    }

    /// The numbers of an array of at most `max`. `None` for anything else.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn floats(&self, blob: &Blob, max: usize) -> Result<Option<Vec<f32>>, String> {
        self.elements(blob, max, |value| match value {
            Self::Float(value) => Some(value as f32),
            _ => None,
        })
    }

    /// The texts of an array of at most `max`. `None` for anything else.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn texts(&self, blob: &Blob, max: usize) -> Result<Option<Vec<String>>, String> {
        self.elements(blob, max, Self::into_text)
    }

    fn elements<T>(
        &self,
        blob: &Blob,
        max: usize,
        element: impl Fn(Self) -> Option<T>,
    ) -> Result<Option<Vec<T>>, String> {
        let Self::Array(array) = self else { return Ok(None) };
        if array.count > max as u64 {
            return Ok(None);
        }
        let mut cursor = Cursor::starting_at(blob, array.range.start);
        let mut elements = Vec::new();
        for _ in 0..array.count {
            match element(scalar(&mut cursor, array.kind)?) {
                Some(value) => elements.push(value),
                None => return Ok(None),
            }
        }
        Ok(Some(elements))
    }
}

/// Reads a type and a value of it.
///
/// # Errors
/// When the file ends before it, or it is malformed.
pub(super) fn read(cursor: &mut Cursor) -> Result<Value, String> {
    match cursor.u32()? {
        ARRAY => array(cursor).map(Value::Array),
        kind => scalar(cursor, kind),
    }
}

fn array(cursor: &mut Cursor) -> Result<Array, String> {
    let (kind, count) = (cursor.u32()?, cursor.u64()?);
    let start = cursor.at();
    match width(kind) {
        Some(width) => {
            let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(width));
            cursor.skip(bytes.ok_or("an array is too long")?)?;
        }
        None if kind == STRING => {
            // Each takes its length's bytes at least, so a wrong count soon comes to the end of the file.
            for _ in 0..count {
                let length = cursor.length()?;
                cursor.skip(length)?;
            }
        }
        None => return Err(unknown(kind)),
    }
    Ok(Array { kind, count, range: start..cursor.at() })
}

fn scalar(cursor: &mut Cursor, kind: u32) -> Result<Value, String> {
    Ok(match kind {
        0 => Value::Integer(u8::from_le_bytes(cursor.take()?).into()),
        1 => Value::Integer(i8::from_le_bytes(cursor.take()?).into()),
        2 => Value::Integer(u16::from_le_bytes(cursor.take()?).into()),
        3 => Value::Integer(i16::from_le_bytes(cursor.take()?).into()),
        4 => Value::Integer(u32::from_le_bytes(cursor.take()?).into()),
        5 => Value::Integer(i32::from_le_bytes(cursor.take()?).into()),
        6 => Value::Float(f32::from_le_bytes(cursor.take()?).into()),
        7 => Value::Bool(cursor.take::<1>()? != [0]),
        STRING => {
            let length = cursor.length()?;
            if length > TEXT_BYTES_MAX {
                cursor.skip(length)?;
                return Ok(Value::LongText(length));
            }
            Value::Text(cursor.text(length)?)
        }
        10 => Value::Integer(u64::from_le_bytes(cursor.take()?).into()),
        11 => Value::Integer(i64::from_le_bytes(cursor.take()?).into()),
        12 => Value::Float(f64::from_le_bytes(cursor.take()?)),
        _ => return Err(unknown(kind)),
    })
}

/// Bytes of a value of a type of one length.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn unknown(kind: u32) -> String {
    format!("type {kind} is unknown, or nested")
}
