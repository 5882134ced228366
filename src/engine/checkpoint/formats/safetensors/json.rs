//! The JSON of a header, with a bound for everything that it lists.
//!
//! The crate `safetensors` reads the same JSON, but keeps all of it in a form of many times its bytes before it looks at it: a list
//! of a million zeros is a file of two megabytes, and takes dozens. Here a list or a text is refused or passed over as soon as it
//! is longer than any that is supported.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
};

use crate::engine::blocks::BlockType;
use crate::engine::checkpoint::formats::{
    FileDtype, Header, METADATA_MAX, NAME_BYTES_MAX, TENSORS_MAX, TensorInfo, counted,
};

/// The key of the texts about the file, beside the names of tensors.
const METADATA_KEY: &str = "__metadata__";

/// Longest text that is kept, in bytes. ComfyUI describes all layers of a file in one text.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Maximum dimensions of a tensor; models have at most five.
const DIMENSIONS_MAX: usize = 8;

/// Longest name of a dtype in bytes, with room for new ones.
const DTYPE_BYTES_MAX: usize = 32;

/// Reads a header. The ranges of its tensors count from the first tensor's byte.
///
/// # Errors
/// When it is malformed, or cannot be read.
pub(super) fn read(text: impl Read) -> Result<Header, String> {
    // From a reader, not from a slice: of all the text only the string that is being read is in memory.
    let mut json = serde_json::Deserializer::from_reader(text);
    let header = Any(HeaderVisitor).deserialize(&mut json).and_then(|header| json.end().map(|()| header));
    header.map_err(|error| error.to_string())
}

/// A value of any type, which a visitor takes. Where a type is asked for, an error repeats the whole wrong text.
struct Any<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Any<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_any(self.0)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with the tensors by name")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Header, E> {
        Err(not_an_object())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header { tensors: BTreeMap::new(), metadata: BTreeMap::new(), said: Vec::new() };
        while let Some(name) = map.next_key_seed(Any(ItemVisitor))? {
            let name = name_of::<A::Error>(name)?;
            if name == METADATA_KEY {
                map.next_value_seed(Any(TextsVisitor(&mut header.metadata)))?;
                continue;
            }
            let of_tensor = |error: A::Error| A::Error::custom(format!("tensor `{name}`: {error}"));
            let info = map.next_value_seed(Any(TensorVisitor)).map_err(of_tensor)?;
            counted("tensors", header.tensors.len() as u64 + 1, TENSORS_MAX).map_err(A::Error::custom)?;
            if header.tensors.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor `{name}` is there twice")));
            }
            header.tensors.insert(name, info);
        }
        Ok(header)
    }
}

/// Keeps the texts about the file, but for the longest.
struct TextsVisitor<'a>(&'a mut BTreeMap<String, String>);

impl<'de> Visitor<'de> for TextsVisitor<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with texts by name")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(not_an_object())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut entries = 0;
        while let Some(key) = map.next_key_seed(Any(ItemVisitor))? {
            let key = name_of::<A::Error>(key)?;
            entries += 1;
            counted("entries of metadata", entries, METADATA_MAX).map_err(A::Error::custom)?;
            match map.next_value_seed(Any(ItemVisitor))? {
                Item::Text(_) if self.0.contains_key(&key) => {
                    return Err(A::Error::custom(format!("metadata `{key}` is there twice")));
                }
                Item::Text(text) => {
                    self.0.insert(key, text);
                }
                Item::LongText => {}
                Item::Number(_) | Item::List(_) => {
                    return Err(A::Error::custom(format!("metadata `{key}` is no text")));
                }
            }
        }
        Ok(())
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = TensorInfo;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<TensorInfo, E> {
        Err(not_an_object())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorInfo, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key_seed(Any(ItemVisitor))? {
            let field = name_of::<A::Error>(field)?;
            let place = match field.as_str() {
                "dtype" => &mut dtype,
                "shape" => &mut shape,
                "data_offsets" => &mut offsets,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if place.replace(map.next_value_seed(Any(ItemVisitor))?).is_some() {
                return Err(A::Error::custom(format!("`{field}` is there twice")));
            }
        }
        match (dtype, shape, offsets) {
            (Some(Item::Text(dtype)), Some(Item::List(shape)), Some(Item::List(offsets))) => {
                tensor(&dtype, shape, &offsets)
            }
            _ => Err(A::Error::custom("it must have a `dtype`, and lists of numbers as `shape` and `data_offsets`")),
        }
    }
}

fn tensor<E: Error>(dtype: &str, shape: Vec<usize>, offsets: &[usize]) -> Result<TensorInfo, E> {
    let dtype = dtype_named::<E>(dtype)?;
    let &[begin, end] = offsets else {
        return Err(E::custom("`data_offsets` must be two numbers"));
    };
    let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &size| bits.checked_mul(size));
    let bytes = bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
    if bytes.is_none() || bytes != end.checked_sub(begin) {
        return Err(E::custom(format!("bytes {begin} to {end} are not as many as {shape:?} in {dtype:?} have")));
    }
    Ok(TensorInfo { dtype: file_dtype(dtype), shape, range: begin..end })
}

fn dtype_named<E: Error>(name: &str) -> Result<Dtype, E> {
    if name.len() > DTYPE_BYTES_MAX {
        return Err(E::custom("`dtype` is longer than any"));
    }
    let name: StrDeserializer<E> = name.into_deserializer();
    Dtype::deserialize(name)
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::BF16 => FileDtype::Blocks(BlockType::Bf16),
        Dtype::F16 => FileDtype::Blocks(BlockType::F16),
        Dtype::F32 => FileDtype::Blocks(BlockType::F32),
        Dtype::F8_E4M3 => FileDtype::Blocks(BlockType::F8E4M3),
        Dtype::F8_E5M2 => FileDtype::Blocks(BlockType::F8E5M2),
        other => FileDtype::Other(format!("{other:?}")),
    }
}

/// A key, or a value that is no object.
enum Item {
    Number(usize),
    Text(String),
    /// A text that is too long to keep.
    LongText,
    List(Vec<usize>),
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a whole number from 0 on, a text or a list of numbers")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Item, E> {
        usize::try_from(number).map(Item::Number).map_err(E::custom)
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(if text.len() <= TEXT_BYTES_MAX { Item::Text(text.to_owned()) } else { Item::LongText })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        let mut numbers = Vec::new();
        while let Some(item) = list.next_element_seed(Any(ItemVisitor))? {
            let Item::Number(number) = item else {
                return Err(A::Error::custom("a list has something else than whole numbers from 0 on"));
            };
            if numbers.len() == DIMENSIONS_MAX {
                return Err(A::Error::custom(format!("a list has more than {DIMENSIONS_MAX} numbers")));
            }
            numbers.push(number);
        }
        Ok(Item::List(numbers))
    }
}

fn name_of<E: Error>(key: Item) -> Result<String, E> {
    match key {
        Item::Text(name) if name.len() <= NAME_BYTES_MAX => Ok(name),
        _ => Err(E::custom(format!("a name is longer than {NAME_BYTES_MAX} bytes"))),
    }
}

fn not_an_object<E: Error>() -> E {
    E::custom("a text is where an object must be")
}
