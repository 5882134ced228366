//! Schemas of request bodies, which are parsed by hand, field by field.

use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};

/// A string.
pub(in crate::http) fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// One of these strings.
pub(in crate::http) fn one_of(words: impl IntoIterator<Item = &'static str>) -> ObjectBuilder {
    text().enum_values(Some(words))
}

/// A date and time, RFC 3339 with its offset from UTC.
pub(in crate::http) fn moment() -> ObjectBuilder {
    text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
}

/// An integer from `minimum`.
pub(in crate::http) fn integer(minimum: u64) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(minimum))
}

/// Any number.
pub(in crate::http) fn number() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Number)
}

/// The constant `true`.
pub(in crate::http) fn only_true() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true]))
}

/// The same, or `null`.
pub(in crate::http) fn or_null(schema: ObjectBuilder) -> ObjectBuilder {
    let object = schema.build();
    let SchemaType::Type(kind) = object.schema_type.clone() else { return object.into() };
    // An enumeration must list `null` as well.
    let values = object.enum_values.clone().map(|values| values.into_iter().chain([Value::Null]));
    ObjectBuilder::from(object).schema_type(SchemaType::Array(vec![kind, Type::Null])).enum_values(values)
}

/// An object without other fields than the named ones.
pub(in crate::http) struct ObjectSchema(ObjectBuilder);

impl ObjectSchema {
    pub(in crate::http) fn new(description: &str) -> Self {
        let object = ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(description))
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        Self(object)
    }

    /// Adds a required field.
    pub(in crate::http) fn required(self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        Self(self.0.property(name, schema).required(name))
    }

    /// Adds an optional field.
    pub(in crate::http) fn optional(self, name: &str, schema: impl Into<RefOr<Schema>>) -> Self {
        Self(self.0.property(name, schema))
    }
}

impl From<ObjectSchema> for RefOr<Schema> {
    fn from(object: ObjectSchema) -> Self {
        object.0.into()
    }
}
