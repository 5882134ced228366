//! A key, as it is asked for and as it is shown.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::limits::{self, LimitsView};
use crate::auth::{Change, CreatedKey, KeyEdit, KeyRecord, NewKey};
use crate::domain::ids::KeyId;
use crate::domain::scope::Scope;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, moment, or_null, text, whole, yes};

/// A key to be made.
pub(in crate::http) struct CreateKey(pub(in crate::http) NewKey);

impl FromFields for CreateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required_text("name");
        let scope = fields.required("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment("expires_at");
        let limits = limits::of_new(fields);
        Some(Self(NewKey { name: name?, scope: scope?, expires_at, limits }))
    }
}

impl ToSchema for CreateKey {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ScopeSchema::note(schemas);
    }
}

impl PartialSchema for CreateKey {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("A key to be made.")
            .required("name", text().description(Some("What people call it.")))
            .required("scope", ScopeSchema::reference())
            .optional("expires_at", moment().description(Some("When it ceases to work. Never, when it is left out.")))
            .optional("limits", limits::schema("What the key may use up.", |limit| limit))
            .into()
    }
}

/// What is to be different about a key. What is not named stays; `null` takes away what can be taken away.
pub(in crate::http) struct EditKey(pub(in crate::http) KeyEdit);

impl FromFields for EditKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = match fields.text_change("name") {
            Change::Keep => None,
            Change::Set(name) => Some(name),
            Change::Remove => {
                fields.refuse("name", "cannot be taken away");
                None
            }
        };
        let scope = fields.given("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment_change("expires_at");
        let limits = limits::of_edit(fields);
        Some(Self(KeyEdit { name, scope, expires_at, limits }))
    }
}

impl ToSchema for EditKey {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ScopeSchema::note(schemas);
    }
}

impl PartialSchema for EditKey {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("What is to be different about a key. What is not named stays.")
            .optional("name", text())
            .optional("scope", ScopeSchema::reference())
            .optional("expires_at", or_null(moment()).description(Some("`null`: never.")))
            .optional("limits", limits::edit_schema())
            .into()
    }
}

/// What a key may be used for, as a client says it.
struct ScopeSchema;

impl ScopeSchema {
    fn reference() -> RefOr<Schema> {
        utoipa::openapi::Ref::from_schema_name(Self::name()).into()
    }

    fn note(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Self::name().into_owned(), Self::schema()));
    }
}

impl ToSchema for ScopeSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "Scope".into()
    }
}

impl PartialSchema for ScopeSchema {
    fn schema() -> RefOr<Schema> {
        let everywhere = ObjectSchema::new("Every namespace.").required("all_namespaces", yes());
        let ids = ArrayBuilder::new().items(text()).min_items(Some(1)).unique_items(true);
        let some = ObjectSchema::new("Some namespaces.").required("namespace_ids", ids);
        let namespaces = OneOfBuilder::new().item(RefOr::from(everywhere)).item(RefOr::from(some));
        let scopes: [RefOr<Schema>; 3] = [
            ObjectSchema::new("Inference and Kubernetes alike.").required("all", yes()).into(),
            ObjectSchema::new("Images.").required("inference", yes()).into(),
            ObjectSchema::new("kubectl, in the namespaces that are named.")
                .required("kubernetes_exec", namespaces)
                .into(),
        ];
        scopes.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into()
    }
}

fn scope(fields: &mut Fields, value: &Value) -> Option<Scope> {
    Scope::from_json(value).inspect_err(|rule| fields.refuse("scope", rule.to_string())).ok()
}

/// A key that is to get another value.
#[derive(Default)]
pub(in crate::http) struct RotateKey {
    /// How long the old value goes on working.
    pub(in crate::http) grace_seconds: u64,
}

impl FromFields for RotateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { grace_seconds: fields.whole_number("grace_seconds").unwrap_or_default() })
    }
}

impl ToSchema for RotateKey {}

impl PartialSchema for RotateKey {
    fn schema() -> RefOr<Schema> {
        let grace =
            whole(0).description(Some("How long the old value goes on working. Not at all, when it is left out."));
        ObjectSchema::new("A key that is to get another value.").optional("grace_seconds", grace).into()
    }
}

/// What is known of a key.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
pub(in crate::http) struct KeyView {
    #[schema(value_type = String)]
    id: KeyId,
    name: String,
    prefix: String,
    #[schema(value_type = ScopeSchema)]
    scope: Value,
    state: &'static str,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    revoked_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    rotated_at: Option<OffsetDateTime>,
    limits: LimitsView,
    /// The value before the last rotation, while it still works.
    overlap: Option<OverlapView>,
}

/// A value that was replaced and still works.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyOverlap)]
pub(in crate::http) struct OverlapView {
    prefix: String,
    #[serde(with = "rfc3339")]
    until: OffsetDateTime,
}

impl From<KeyRecord> for KeyView {
    fn from(record: KeyRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            prefix: record.prefix.to_string(),
            scope: record.scope.to_json(),
            state: record.state.as_str(),
            created_at: record.created_at,
            expires_at: record.expires_at,
            revoked_at: record.revoked_at,
            last_used_at: record.last_used_at,
            rotated_at: record.rotated_at,
            limits: record.limits.into(),
            overlap: record
                .overlap
                .map(|overlap| OverlapView { prefix: overlap.prefix.to_string(), until: overlap.until }),
        }
    }
}

/// A key that was just made or rotated: the one time its value is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = CreatedKey)]
pub(in crate::http) struct CreatedKeyView {
    #[serde(flatten)]
    record: KeyView,
    /// The whole value. It is never shown again.
    key: String,
}

impl From<CreatedKey> for CreatedKeyView {
    fn from(created: CreatedKey) -> Self {
        Self { key: created.plain.reveal().to_owned(), record: created.record.into() }
    }
}

/// One page of keys, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyList)]
pub(in crate::http) struct KeyListView {
    pub(in crate::http) data: Vec<KeyView>,
    pub(in crate::http) next_cursor: Option<String>,
}
