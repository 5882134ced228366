//! The fields of a JSON object or a form, taken one by one, so that an error names every unknown or invalid field at once.

#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::VALUES_MAX;
use super::object::count_values;
use crate::auth::Change;
use crate::domain::spec::FieldError;
use crate::http::extract::body::SMALL_BODY_BYTES_MAX;
use crate::http::state::HttpState;

/// Largest whole number that is exact when written as `42.0` or `4.2e1`.
const FLOAT_EXACT_MAX: f64 = 562_949_953_421_312.0;

/// A type that can be parsed from the fields of an object.
pub(in crate::http) trait FromFields: Sized + Send + 'static {
    /// Takes its fields. `None` only after an error was added to `fields`.
    fn from_fields(fields: &mut Fields) -> Option<Self>;

    /// The largest body of this type: small unless more is needed.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max.min(SMALL_BODY_BYTES_MAX)
    }
}

/// The fields of an object that have not been taken yet, and the errors of those that were. A `null` field counts as
/// absent.
#[derive(Debug)]
pub(in crate::http) struct Fields {
    values: Map<String, Value>,
    /// Whether all values are texts, as a form has them: those of other types are JSON in their text.
    is_form: bool,
    /// The files of a form, each with its field.
    files: Vec<(String, Vec<u8>)>,
    errors: Vec<FieldError>,
    /// All fields that were read, which the OpenAPI document must list.
    #[cfg(test)]
    names_read: BTreeSet<String>,
}

impl Fields {
    pub(super) fn new(values: Map<String, Value>, errors: Vec<FieldError>) -> Self {
        Self {
            values,
            is_form: false,
            files: Vec::new(),
            errors,
            #[cfg(test)]
            names_read: BTreeSet::new(),
        }
    }

    /// Those of a form: its texts and its files.
    pub(in crate::http::extract) fn of_form(
        texts: Map<String, Value>,
        files: Vec<(String, Vec<u8>)>,
        errors: Vec<FieldError>,
    ) -> Self {
        Self { is_form: true, files, ..Self::new(texts, errors) }
    }

    /// Reads all of `T`.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(in crate::http::extract) fn parse<T: FromFields>(mut self) -> Result<T, Vec<FieldError>> {
        let read = T::from_fields(&mut self);
        let errors = self.finish();
        match read {
            Some(read) if errors.is_empty() => Ok(read),
            _ => Err(errors),
        }
    }

    /// The fields that `T` reads.
    #[cfg(test)]
    pub(in crate::http) fn read_by<T: FromFields>() -> BTreeSet<String> {
        let mut fields = Self::new(Map::new(), Vec::new());
        T::from_fields(&mut fields);
        fields.names_read
    }

    fn remove(&mut self, field: &str) -> Option<Value> {
        #[cfg(test)]
        self.names_read.insert(field.to_owned());
        self.values.remove(field)
    }

    fn take<T>(&mut self, field: &str, must_be: &str, read: impl FnOnce(Value) -> Option<T>) -> Option<T> {
        let value = self.given(field);
        self.check(field, value, must_be, read)
    }

    fn check<T>(
        &mut self,
        field: &str,
        value: Option<Value>,
        must_be: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Option<T> {
        let read = read(value.filter(|value| !value.is_null())?);
        if read.is_none() {
            self.refuse(field, format!("must be {must_be}"));
        }
        read
    }

    /// Adds an error.
    pub(in crate::http) fn refuse(&mut self, field: &str, reason: impl Into<String>) {
        self.errors.push(FieldError::new(field, reason));
    }

    /// A string.
    pub(in crate::http) fn text(&mut self, field: &str) -> Option<String> {
        let value = self.remove(field);
        self.check(field, value, "a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// The files of this field, in their order.
    pub(in crate::http) fn files(&mut self, field: &str) -> Vec<Vec<u8>> {
        if self.remove(field).is_some() {
            self.refuse(field, "must be a file: its part of the form needs a file name");
        }
        let (wanted, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|(name, _)| name == field);
        self.files = others;
        wanted.into_iter().map(|(_, bytes)| bytes).collect()
    }

    /// A string that is parsed as `T`, whose error lists the possible values.
    pub(in crate::http) fn word<T: FromStr<Err: fmt::Display>>(&mut self, field: &str) -> Option<T> {
        let word = self.text(field)?;
        word.parse().inspect_err(|unknown: &T::Err| self.refuse(field, unknown.to_string())).ok()
    }

    /// A required string.
    pub(in crate::http) fn required_text(&mut self, field: &str) -> Option<String> {
        if self.values.get(field).is_none_or(Value::is_null) {
            self.remove(field);
            self.refuse(field, "is required");
            return None;
        }
        self.text(field)
    }

    /// A value of any type, including `null`.
    pub(in crate::http) fn given(&mut self, field: &str) -> Option<Value> {
        let value = self.remove(field)?;
        Some(if self.is_form { typed(value) } else { value })
    }

    /// A required value of any type.
    pub(in crate::http) fn required(&mut self, field: &str) -> Option<Value> {
        let value = self.given(field);
        if value.is_none() {
            self.refuse(field, "is required");
        }
        value
    }

    /// A date and time, RFC 3339 with its offset from UTC.
    pub(in crate::http) fn moment(&mut self, field: &str) -> Option<OffsetDateTime> {
        let must_be = "a date and time with an offset, like 2030-01-31T12:00:00Z";
        self.take(field, must_be, |value| OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok())
    }

    /// The change to a string: `null` removes it.
    pub(in crate::http) fn text_change(&mut self, field: &str) -> Change<String> {
        if self.is_null(field) { Change::Remove } else { self.text(field).map_or(Change::Keep, Change::Set) }
    }

    /// The new text of what always has one: `null` is refused. `None`: it stays.
    pub(in crate::http) fn lasting_text(&mut self, field: &str) -> Option<String> {
        match self.text_change(field) {
            Change::Keep => None,
            Change::Set(text) => Some(text),
            Change::Remove => {
                self.refuse(field, "cannot be removed");
                None
            }
        }
    }

    /// The change to a date and time: `null` removes it.
    pub(in crate::http) fn moment_change(&mut self, field: &str) -> Change<OffsetDateTime> {
        if self.is_null(field) { Change::Remove } else { self.moment(field).map_or(Change::Keep, Change::Set) }
    }

    /// The change to a whole number from 0: `null` removes it.
    pub(in crate::http) fn number_change(&mut self, field: &str) -> Change<u32> {
        if self.is_null(field) { Change::Remove } else { self.small_number(field).map_or(Change::Keep, Change::Set) }
    }

    /// Reads the fields of a nested object. Their errors have its name as a prefix.
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

    /// Whether a field is absent, or `null`. It is not taken.
    pub(in crate::http) fn is_absent(&self, field: &str) -> bool {
        self.values.get(field).is_none_or(Value::is_null)
    }

    /// Whether a field is `null`; if so it is taken.
    pub(in crate::http) fn is_null(&mut self, field: &str) -> bool {
        let is_null = self.values.get(field).is_some_and(Value::is_null);
        if is_null {
            self.remove(field);
        }
        is_null
    }

    /// A whole number from 0, in any notation: `42`, `42.0` and `4.2e1` are the same in JSON.
    pub(in crate::http) fn whole_number(&mut self, field: &str) -> Option<u64> {
        self.take(field, "a whole number, not negative", |value| integer(&value))
    }

    /// As [`Fields::whole_number`]; a larger number becomes the maximum, which no limit allows.
    pub(in crate::http) fn small_number(&mut self, field: &str) -> Option<u32> {
        self.whole_number(field).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A number.
    pub(in crate::http) fn number(&mut self, field: &str) -> Option<f64> {
        self.take(field, "a number", |value| value.as_f64())
    }

    /// An array of strings.
    pub(in crate::http) fn texts(&mut self, field: &str) -> Option<Vec<String>> {
        self.take(field, "an array of strings", |value| serde_json::from_value(value).ok())
    }

    /// An array of objects, each read by `read`. The errors of one have its place as a prefix: `loras[0].id`.
    pub(in crate::http) fn objects<T>(&mut self, field: &str, read: impl Fn(&mut Self) -> Option<T>) -> Vec<T> {
        let objects: Option<Vec<Map<String, Value>>> =
            self.take(field, "an array of objects", |value| serde_json::from_value(value).ok());
        let mut all = Vec::new();
        for (place, values) in objects.unwrap_or_default().into_iter().enumerate() {
            let mut fields = Self::new(values, Vec::new());
            all.extend(read(&mut fields));
            let named = |error: FieldError| FieldError::new(format!("{field}[{place}].{}", error.field), error.reason);
            self.errors.extend(fields.finish().into_iter().map(named));
        }
        all
    }

    /// All errors. Fields that were not taken are unknown, unless they are `null`.
    fn finish(self) -> Vec<FieldError> {
        let mut errors = self.errors;
        let unknown = self.values.into_iter().filter(|(_, value)| !value.is_null());
        errors.extend(unknown.map(|(field, _)| FieldError::new(field, "is not a known field")));
        errors.extend(self.files.into_iter().map(|(field, _)| FieldError::new(field, "is not the field of a file")));
        errors
    }
}

/// The value of a form's text for a field that is no text: JSON, such as a number. Other texts stay what they are, for the field
/// to refuse.
fn typed(value: Value) -> Value {
    match value {
        Value::String(text) if count_values(text.as_bytes()) <= VALUES_MAX => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        value => value,
    }
}

/// The whole number in a value. A larger one becomes the maximum, which no limit allows. So does a large one with a
/// fraction or an exponent: it is not exact, and must not become another number.
pub(in crate::http) fn integer(value: &Value) -> Option<u64> {
    let exact = |number: f64| if number <= FLOAT_EXACT_MAX { number as u64 } else { u64::MAX };
    let of_float = |number: f64| (number >= 0.0 && number.fract() == 0.0).then(|| exact(number));
    value.as_u64().or_else(|| of_float(value.as_f64()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_are_read_in_any_notation() {
        let parsed = |text: &str| integer(&serde_json::from_str(text).expect("JSON"));
        for (text, number) in [("42", 42), ("42.0", 42), ("4.2e1", 42), ("1e3", 1000), ("-0", 0), ("1E30", u64::MAX)] {
            assert_eq!(parsed(text), Some(number), "{text}");
        }
        assert_eq!(parsed("18446744073709551615"), Some(u64::MAX));
        for text in ["42.5", "-1", "-1.0", "1e-3", "\"42\"", "null", "[42]"] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(integer(&json!(562_949_953_421_312.0)), Some(562_949_953_421_312));
        assert_eq!(parsed("9007199254740991.0"), Some(u64::MAX), "not a neighboring number");
    }

    /// The fields of a form with these texts and one file, `image`.
    fn form(texts: &[(&str, &str)]) -> Fields {
        let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        Fields::of_form(texts, vec![("image".to_owned(), vec![7])], Vec::new())
    }

    #[test]
    fn the_texts_of_a_form_have_the_types_of_their_fields() {
        let mut fields = form(&[("prompt", "7"), ("n", "2"), ("stream", "false"), ("strength", "0.5")]);
        assert_eq!(fields.text("prompt").as_deref(), Some("7"), "a text stays one");
        assert_eq!((fields.small_number("n"), fields.number("strength")), (Some(2), Some(0.5)));
        assert_eq!(fields.given("stream"), Some(json!(false)));
        assert_eq!(fields.files("image"), [[7_u8]]);
        assert!(fields.finish().is_empty());

        let mut fields = form(&[("loras", r#"[{"id": "pen", "scale": 2}]"#)]);
        let read = |fields: &mut Fields| Some((fields.required_text("id")?, fields.number("scale")));
        assert_eq!(fields.objects("loras", read), [("pen".to_owned(), Some(2.0))]);
    }

    #[test]
    fn everything_that_is_wrong_in_a_form_is_named() {
        let mut fields = form(&[("n", "two"), ("seed", ""), ("mask", "data:"), ("svg", "1")]);
        assert_eq!((fields.small_number("n"), fields.whole_number("seed")), (None, None));
        assert!(fields.files("mask").is_empty());
        let errors = fields.finish();
        let errors: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(errors, ["n", "seed", "mask", "svg", "image"]);

        let many = format!("[{}]", vec!["{}"; VALUES_MAX].join(","));
        let mut fields = form(&[("loras", &many)]);
        fields.objects("loras", |_| Some(()));
        assert_eq!(fields.finish().first().map(|error| error.field.as_str()), Some("loras"), "it is not even parsed");
    }
}
