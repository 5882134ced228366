//! A JSON object as it is parsed: its fields, the duplicates among them, and a bound on the number of values.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};

/// An object and its duplicate fields, which are an error since it is unknown which value is meant.
pub(super) struct Object {
    pub(super) values: Map<String, Value>,
    pub(super) duplicates: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object { values: Map::new(), duplicates: BTreeSet::new() };
        while let Some((field, value)) = map.next_entry::<String, Value>()? {
            match object.values.entry(field) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) => drop(object.duplicates.insert(entry.key().clone())),
            }
        }
        Ok(object)
    }
}

/// An upper bound on the number of values in a JSON text, up to its first error.
pub(super) fn count_values(text: &[u8]) -> usize {
    let (mut count, mut rest) = (1, text);
    while let Some((first, rest_after)) = rest.split_first() {
        rest = match first {
            b'"' => after_string(rest_after),
            b',' | b'[' | b'{' => {
                count += 1;
                rest_after
            }
            _ => rest_after,
        };
    }
    count
}

/// The rest after a string whose opening quotation mark has been read.
fn after_string(mut text: &[u8]) -> &[u8] {
    while let Some(at) = text.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        let is_end = text[at] == b'"';
        text = text.get(at + if is_end { 1 } else { 2 }..).unwrap_or_default();
        if is_end {
            return text;
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_as_parsed_and_not_inside_strings() {
        let cases = [
            ("{}", 2),
            (r#"{"a":1,"b":[true,null,{}]}"#, 7),
            (r#"{"a":"[,{\"[,{\\"}"#, 2),
            (r#"{"a":"\\","b":[]}"#, 4),
            (r#"{"a":"never ends, [[["#, 2),
            (r#"{"a":"\"#, 2),
        ];
        for (text, count) in cases {
            assert_eq!(count_values(text.as_bytes()), count, "{text}");
        }
    }
}
