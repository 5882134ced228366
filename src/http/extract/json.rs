//! JSON bodies, read field by field, so that a refusal names every field that is unknown or of the wrong type, in our
//! words and all at once.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::map::Entry;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::spawn_blocking;

use super::body::{BodyHold, BodyOwner, SMALL_BODY_BYTES_MAX, announced_bytes, collect};
use crate::auth::Change;
use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};

/// How much longer a body may take that is larger than those without images: some megabytes come by telephone, too.
const LARGE_BODY_MORE_TIME: Duration = Duration::from_mins(1);

/// Values in one body, those within others included: ours have some ten. A value takes up to some hundred times the
/// memory of the two characters that make it.
const VALUES_MAX: usize = 1024;
/// Largest whole number that is read to its last digit where it is written as `42.0` or `4.2e1`.
const FLOAT_EXACT_MAX: f64 = 562_949_953_421_312.0;
/// Some programs begin a text in UTF-8 with this, which says nothing.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON object as `T`.
pub(in crate::http) struct ApiJson<T> {
    pub(in crate::http) value: T,
    /// BLAKE3 of the bytes as they came.
    pub(in crate::http) digest: [u8; 32],
    /// The memory that the body takes up: to be kept as long as what is large of it.
    pub(in crate::http) hold: BodyHold,
}

/// A type that can be read from the fields of an object.
pub(in crate::http) trait FromFields: Sized + Send + 'static {
    /// Takes its fields. `None` only after an error was noted in `fields`.
    fn from_fields(fields: &mut Fields) -> Option<Self>;

    /// Largest body that it comes in: a small one, where nothing larger is needed.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max.min(SMALL_BODY_BYTES_MAX)
    }
}

/// The fields of an object that have not been taken yet, and what is wrong with those that were. A field that is
/// `null` counts as absent.
#[derive(Debug)]
pub(in crate::http) struct Fields {
    values: Map<String, Value>,
    errors: Vec<FieldError>,
    /// Every field that was looked for: what the API's description has to name.
    #[cfg(test)]
    asked: BTreeSet<String>,
}

impl<T: FromFields> FromRequest<HttpState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType));
        }
        if is_encoded(request.headers()) {
            let detail = "the body must come as it is: no Content-Encoding is read here";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType).with_detail(detail));
        }
        let announced = announced_bytes(request.headers());
        let is_large = announced.is_some_and(|bytes| bytes > state.settings.body_bytes_max);
        let more = if is_large { LARGE_BODY_MORE_TIME } else { Duration::ZERO };
        let owner = request.extensions().get().map_or(KeyId::NONE, |BodyOwner(owner)| *owner);
        let body = collect(request.into_body(), announced, T::body_bytes_max(state), (&state.0.bodies, owner));
        let (body, hold) = tokio::time::timeout(state.settings.body_deadline + more, body)
            .await
            .map_err(|_| ApiError::new(ErrorCode::BodyTimeout))??;
        let bytes = body.len();
        let read = move || Ok(Self { value: read(&body)?, digest: blake3::hash(&body).into(), hold });
        done_aside_if_large(bytes, read).await
    }
}

/// Does what takes milliseconds for each image in a body, where the body is so large, and not on the threads that answer
/// everyone else.
async fn done_aside_if_large<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= SMALL_BODY_BYTES_MAX {
        return work();
    }
    spawn_blocking(work).await.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?
}

/// A body that may be left out.
impl<T: FromFields> OptionalFromRequest<HttpState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Option<Self>, ApiError> {
        let headers = request.headers();
        let is_empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0");
        if is_empty && !headers.contains_key(TRANSFER_ENCODING) && !headers.contains_key(CONTENT_TYPE) {
            return Ok(None);
        }
        <Self as FromRequest<HttpState>>::from_request(request, state).await.map(Some)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Whether the body has to be unpacked before it can be read.
fn is_encoded(headers: &HeaderMap) -> bool {
    let words = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut words = words.map(<[u8]>::trim_ascii);
    words.any(|word| !word.is_empty() && !word.eq_ignore_ascii_case(b"identity"))
}

/// How many values stand in a JSON text, at most; up to where it is broken, if it is.
fn values(text: &[u8]) -> usize {
    let (mut count, mut rest) = (1, text);
    while let Some((first, behind)) = rest.split_first() {
        rest = match first {
            b'"' => behind_string(behind),
            b',' | b'[' | b'{' => {
                count += 1;
                behind
            }
            _ => behind,
        };
    }
    count
}

/// What comes after a string, of which the quotation mark has been read.
fn behind_string(mut text: &[u8]) -> &[u8] {
    while let Some(at) = text.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        let is_end = text[at] == b'"';
        text = text.get(at + if is_end { 1 } else { 2 }..).unwrap_or_default();
        if is_end {
            return text;
        }
    }
    &[]
}

/// An object, and the fields that stand in it more than once: which of them is meant is not ours to guess.
struct Object {
    values: Map<String, Value>,
    twice: BTreeSet<String>,
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
        let mut object = Object { values: Map::new(), twice: BTreeSet::new() };
        while let Some((field, value)) = map.next_entry::<String, Value>()? {
            match object.values.entry(field) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) => drop(object.twice.insert(entry.key().clone())),
            }
        }
        Ok(object)
    }
}

fn read<T: FromFields>(body: &[u8]) -> Result<T, ApiError> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if values(body) > VALUES_MAX {
        let detail = format!("the body holds more than {VALUES_MAX} values");
        return Err(ApiError::new(ErrorCode::InvalidRequest).with_detail(detail));
    }
    let Object { values, twice } = serde_json::from_slice(body).map_err(|error| {
        let detail = match error.classify() {
            Category::Data => "the body must be a JSON object".to_owned(),
            _ => format!("the body cannot be read as JSON at line {}, column {}", error.line(), error.column()),
        };
        ApiError::new(ErrorCode::MalformedJson).with_detail(detail)
    })?;
    let errors = twice.into_iter().map(|field| FieldError::new(field, "is given twice")).collect();
    let mut fields = Fields::new(values, errors);
    let read = T::from_fields(&mut fields);
    let errors = fields.finish();
    match read {
        Some(read) if errors.is_empty() => Ok(read),
        _ => Err(ApiError::invalid(errors)),
    }
}

impl Fields {
    fn new(values: Map<String, Value>, errors: Vec<FieldError>) -> Self {
        Self {
            values,
            errors,
            #[cfg(test)]
            asked: BTreeSet::new(),
        }
    }

    /// The fields that `T` looks for.
    #[cfg(test)]
    pub(in crate::http) fn asked_by<T: FromFields>() -> BTreeSet<String> {
        let mut fields = Self::new(Map::new(), Vec::new());
        T::from_fields(&mut fields);
        fields.asked
    }

    fn remove(&mut self, field: &str) -> Option<Value> {
        #[cfg(test)]
        self.asked.insert(field.to_owned());
        self.values.remove(field)
    }

    fn take<T>(&mut self, field: &str, must_be: &str, read: impl FnOnce(Value) -> Option<T>) -> Option<T> {
        let value = self.remove(field).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.refuse(field, format!("must be {must_be}"));
        }
        read
    }

    /// Notes a broken rule.
    pub(in crate::http) fn refuse(&mut self, field: &str, reason: impl Into<String>) {
        self.errors.push(FieldError::new(field, reason));
    }

    /// A text.
    pub(in crate::http) fn text(&mut self, field: &str) -> Option<String> {
        self.take(field, "a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// A text that stands for something; what it can be, its own error says.
    pub(in crate::http) fn word<T: FromStr<Err: fmt::Display>>(&mut self, field: &str) -> Option<T> {
        let word = self.text(field)?;
        word.parse().inspect_err(|unknown: &T::Err| self.refuse(field, unknown.to_string())).ok()
    }

    /// A text that has to be there.
    pub(in crate::http) fn required_text(&mut self, field: &str) -> Option<String> {
        if self.values.get(field).is_none_or(Value::is_null) {
            self.remove(field);
            self.refuse(field, "is required");
            return None;
        }
        self.text(field)
    }

    /// A value of any kind, also `null`.
    pub(in crate::http) fn given(&mut self, field: &str) -> Option<Value> {
        self.remove(field)
    }

    /// A value of any kind that has to be there.
    pub(in crate::http) fn required(&mut self, field: &str) -> Option<Value> {
        let value = self.given(field);
        if value.is_none() {
            self.refuse(field, "is required");
        }
        value
    }

    /// A moment, RFC 3339 with its offset from UTC.
    pub(in crate::http) fn moment(&mut self, field: &str) -> Option<OffsetDateTime> {
        let must_be = "a date and time with an offset, like 2030-01-31T12:00:00Z";
        self.take(field, must_be, |value| OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok())
    }

    /// What is to become of a text: `null` takes it away.
    pub(in crate::http) fn text_change(&mut self, field: &str) -> Change<String> {
        if self.is_null(field) { Change::Remove } else { self.text(field).map_or(Change::Keep, Change::Set) }
    }

    /// What is to become of a moment: `null` takes it away.
    pub(in crate::http) fn moment_change(&mut self, field: &str) -> Change<OffsetDateTime> {
        if self.is_null(field) { Change::Remove } else { self.moment(field).map_or(Change::Keep, Change::Set) }
    }

    /// What is to become of a number without a fraction, from 0: `null` takes it away.
    pub(in crate::http) fn number_change(&mut self, field: &str) -> Change<u32> {
        if self.is_null(field) { Change::Remove } else { self.small_number(field).map_or(Change::Keep, Change::Set) }
    }

    /// The fields of an object within; what is wrong with them is named with the object in front.
    pub(in crate::http) fn nested(&mut self, field: &str, read: impl FnOnce(&mut Self)) {
        let values = self.take(field, "an object", |value| match value {
            Value::Object(values) => Some(values),
            _ => None,
        });
        let Some(values) = values else { return };
        let mut fields = Self::new(values, Vec::new());
        read(&mut fields);
        let named = |error: FieldError| FieldError::new(format!("{field}.{}", error.field), error.reason);
        self.errors.extend(fields.finish().into_iter().map(named));
    }

    /// Whether a field is `null`; then it is taken.
    pub(in crate::http) fn is_null(&mut self, field: &str) -> bool {
        let is_null = self.values.get(field).is_some_and(Value::is_null);
        if is_null {
            self.remove(field);
        }
        is_null
    }

    /// A number without a fraction, from 0, however it is written: `42`, `42.0` and `4.2e1` are the same to JSON.
    pub(in crate::http) fn whole_number(&mut self, field: &str) -> Option<u64> {
        self.take(field, "a whole number, not negative", |value| whole(&value))
    }

    /// As [`Fields::whole_number`]; what does not fit becomes the largest, which no rule of ours allows.
    pub(in crate::http) fn small_number(&mut self, field: &str) -> Option<u32> {
        self.whole_number(field).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Any number.
    pub(in crate::http) fn number(&mut self, field: &str) -> Option<f64> {
        self.take(field, "a number", |value| value.as_f64())
    }

    /// Texts.
    pub(in crate::http) fn texts(&mut self, field: &str) -> Option<Vec<String>> {
        self.take(field, "an array of strings", |value| serde_json::from_value(value).ok())
    }

    /// Everything that is wrong; fields that nobody took are unknown, and absent where they are `null`.
    fn finish(self) -> Vec<FieldError> {
        let mut errors = self.errors;
        let unknown = self.values.into_iter().filter(|(_, value)| !value.is_null());
        errors.extend(unknown.map(|(field, _)| FieldError::new(field, "is not a known field")));
        errors
    }
}

/// A value that is a whole number. What is beyond all of them becomes the largest, which no rule of ours allows.
/// So does a large one that is written with a fraction or an exponent: its last digit is lost on the way, and it must not
/// become another number.
pub(in crate::http) fn whole(value: &Value) -> Option<u64> {
    let exact = |number: f64| if number <= FLOAT_EXACT_MAX { number as u64 } else { u64::MAX };
    let of_float = |number: f64| (number >= 0.0 && number.fract() == 0.0).then(|| exact(number));
    value.as_u64().or_else(|| of_float(value.as_f64()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn large_bodies_are_read_on_threads_that_answer_nobody() {
        let thread = || Ok(std::thread::current().id());
        let here = std::thread::current().id();
        assert_eq!(done_aside_if_large(SMALL_BODY_BYTES_MAX, thread).await.expect("done"), here);
        assert_ne!(done_aside_if_large(SMALL_BODY_BYTES_MAX + 1, thread).await.expect("done"), here);
    }

    #[test]
    fn values_are_counted_as_the_parser_makes_them_and_not_within_strings() {
        let cases = [
            ("{}", 2),
            (r#"{"a":1,"b":[true,null,{}]}"#, 7),
            (r#"{"a":"[,{\"[,{\\"}"#, 2),
            (r#"{"a":"\\","b":[]}"#, 4),
            (r#"{"a":"never ends, [[["#, 2),
            (r#"{"a":"\"#, 2),
        ];
        for (text, count) in cases {
            assert_eq!(values(text.as_bytes()), count, "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_whole_however_they_are_written() {
        let parsed = |text: &str| whole(&serde_json::from_str(text).expect("JSON"));
        for (text, number) in [("42", 42), ("42.0", 42), ("4.2e1", 42), ("1e3", 1000), ("-0", 0), ("1E30", u64::MAX)] {
            assert_eq!(parsed(text), Some(number), "{text}");
        }
        assert_eq!(parsed("18446744073709551615"), Some(u64::MAX));
        for text in ["42.5", "-1", "-1.0", "1e-3", "\"42\"", "null", "[42]"] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(whole(&json!(562_949_953_421_312.0)), Some(562_949_953_421_312));
        assert_eq!(parsed("9007199254740991.0"), Some(u64::MAX), "not one beside it");
    }
}
